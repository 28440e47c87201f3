"""Counts follow from the parameters, time and money from figures that have a source."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme
import yaml

from t2i_feedback import arms, params
from t2i_feedback.foundation import pipeline
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.params import Params
from t2i_feedback.tools import profile
from t2i_feedback.tools.estimate import __main__ as program
from t2i_feedback.tools.estimate import costs, counts
from t2i_feedback.tools.estimate.costs import Estimate, estimate
from t2i_feedback.tools.estimate.figures import FIGURES, Throughputs, read
from t2i_feedback.tools.estimate.page import table

REPOSITORY = Path(__file__).parents[3]
README_SECONDS = [60 * float(text) for text in readme.MINUTES.search(readme.README.read_text("utf-8"))[1].split(" to ")]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def figures() -> Throughputs:
    return read()


@pytest.fixture
def default() -> Params:
    return params.load()


@pytest.fixture
def of_the_run(default: Params) -> Params:
    """The parameters of the committed run, which figures are compared with."""
    if yaml.safe_load(readme.committed(REPOSITORY / "params.yaml")) != yaml.safe_load(Path("params.yaml").read_text()):
        pytest.skip("params.yaml was changed: the committed run is of other parameters")
    return default


@pytest.fixture
def paper() -> Params:
    return profile.chosen("paper")


def changed(p: Params, section: str, **values: object) -> Params:
    return p.model_copy(update={section: getattr(p, section).model_copy(update=values)})


def work(p: Params, figures: Throughputs) -> dict[str, counts.Work]:
    return {one.stage: one for one in counts.work(p, figures)}


def calls(one: counts.Work, role: str, kind: str = "question") -> float:
    return sum(asked.count for asked in one.asked if (asked.role, asked.kind) == (role, kind))


def recorded(name: str) -> dict:
    return json.loads(readme.committed(readme.NUMBERS))[name]


def leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Everything that is not a mapping, or is a mapping with a value: a figure."""
    if isinstance(node, dict) and "value" not in node:
        for name, inner in node.items():
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, node


# ------------------------------------------------------------------------------------------------ figures


def test_no_figure_is_without_value_unit_and_source() -> None:
    content = yaml.safe_load(FIGURES.read_text())
    found = dict(leaves(content))
    assert len(found) > 50
    for key, figure in found.items():
        assert isinstance(figure, dict) and set(figure) == {"value", "unit", "source"}, key
        assert figure["source"].startswith(("https://", "measured: ", "assumed: ", "paper: ")), key


def test_a_figure_without_a_source_is_refused_by_its_key(tmp_path: Path) -> None:
    content = yaml.safe_load(FIGURES.read_text())
    del content["gpus"]["a100"]["price"]["source"]
    (tmp_path / "figures.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"gpus\.a100\.price\.source"):
        read(tmp_path / "figures.yaml")


def test_a_figure_of_nothing_is_refused_by_its_key(tmp_path: Path) -> None:
    content = yaml.safe_load(FIGURES.read_text())
    content["image_models"]["models/postcards/sd"]["steps"]["cpu"]["value"] = 0
    (tmp_path / "figures.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"steps\.cpu\.value: .*greater than 0"):
        read(tmp_path / "figures.yaml")


def test_every_entry_of_the_paper_has_its_figures(paper: Params, figures: Throughputs) -> None:
    for name in ("llava15-7b", "llava15-13b", "llava16-7b", "llava16-13b", "gpt4", "cogvlm"):
        found = estimate(changed(paper, "stage1", mllm=name), figures, "a100", 1)
        assert found.hours > 0


# ------------------------------------------------------------------------------------------------ counts


def test_fine_tuning_draws_asks_and_trains_by_its_batch_arithmetic(paper: Params, figures: Throughputs) -> None:
    found = work(paper, figures)["finetune"]
    assert found.images == calls(found, "judge") == calls(found, "held-out judge") == 100 * 32 * 8
    assert found.transitions == 100 * 32 * 8 * 17  # a third of 50 steps


def test_half_of_the_timesteps_are_half_of_the_transitions(paper: Params, figures: Throughputs) -> None:
    half, every = (
        work(changed(paper, "finetune", timestep_share=share, inner_epochs=3), figures)["finetune"].transitions
        for share in (0.5, 1.0)
    )
    assert half == every / 2 == 100 * 32 * 8 * 50 * 3 / 2


def test_rollouts_of_fewer_steps_are_drawn_and_trained_in_fewer(paper: Params, figures: Throughputs) -> None:
    paper = changed(paper, "finetune", timestep_share=1.0)
    fewer = changed(paper, "finetune", steps=10)
    assert work(fewer, figures)["finetune"].transitions == 100 * 32 * 8 * 10
    cost, other = ({one.stage: one for one in estimate(p, figures, "a100", 1).stages} for p in (fewer, paper))
    for what in ("drawing", "updates"):
        assert cost["finetune"].seconds[what] == pytest.approx(other["finetune"].seconds[what] / 5)
    assert cost["generate@raw"].seconds["drawing"] == other["generate@raw"].seconds["drawing"]


def test_an_objective_that_looks_once_more_costs_a_forward_more(paper: Params, figures: Throughputs) -> None:
    costs = []
    for objective in ("ddpo", "nft"):
        chosen = changed(paper, "finetune", objective=objective)
        costs.append({one.stage: one for one in estimate(chosen, figures, "a100", 1).stages}["finetune"])
    forwards = [
        cost.seconds["updates"] / (cost.transitions * cost.seconds["drawing"] / (cost.images * 50)) for cost in costs
    ]
    assert forwards[1] - forwards[0] == pytest.approx(1)


def test_a_window_of_steps_with_noise_is_all_that_is_trained_on(paper: Params, figures: Throughputs) -> None:
    noise = paper.finetune.noise.model_copy(update={"window": 3})
    found = work(changed(paper, "finetune", steps=10, noise=noise, timestep_share=1.0), figures)["finetune"]
    assert found.transitions == 100 * 32 * 8 * 3


def test_a_feedback_budget_bounds_what_the_user_is_asked(paper: Params, figures: Throughputs) -> None:
    found = work(changed(paper, "finetune", acquisition="random", feedback_budget=64), figures)["finetune"]
    assert calls(found, "judge") == 100 * 64
    assert calls(found, "held-out judge") == found.images == 100 * 256


def test_a_reward_that_asks_nobody_costs_no_calls_of_the_judge(paper: Params, figures: Throughputs) -> None:
    found = work(changed(paper, "finetune", reward={"brightness": -1.0}), figures)["finetune"]
    assert calls(found, "judge") == calls(found, "validator") == 0


def test_shows_caption_as_a_reward_asks_the_judge_for_verdicts(paper: Params, figures: Throughputs) -> None:
    found = work(changed(paper, "finetune", reward={"preference": 1.0, "shows_caption": 1.0}), figures)["finetune"]
    assert calls(found, "judge") == calls(found, "validator") == found.images


@pytest.mark.parametrize("arm", sorted(arms.NAMES))
def test_every_arm_has_as_many_images_as_the_committed_run(of_the_run: Params, figures: Throughputs, arm: str) -> None:
    found, metrics = work(of_the_run, figures), recorded("arms")[arm]
    made = {name: f"generate@{name}" for name in arms.NAMES} | {"best_of_n": "best_of_n"}
    made |= {one.name: f"validate@{one.name}" for one in arms.ARMS if one.has_rounds}
    stages = [made[name] for name in (arms.by_name(arm).begins_as, arm) if name]
    drawn = sum(found[stage].images for stage in stages)
    assert drawn == pytest.approx(metrics["n"] * metrics["rounds_mean"], rel=0.01)
    assert found[f"evaluate@{arm}"].features == metrics["n"]


def test_fine_tuning_has_the_epochs_of_the_committed_run(of_the_run: Params, figures: Throughputs) -> None:
    found, metrics = work(of_the_run, figures)["finetune"], recorded("finetune")
    assert calls(found, "judge") == metrics["epochs"] * of_the_run.finetune.images_per_epoch


def test_the_validator_is_calibrated_on_the_claims_of_the_committed_run(
    of_the_run: Params, figures: Throughputs
) -> None:
    metrics = recorded("validator")
    claims = metrics["true_captions"] + metrics["altered_captions"]
    again = 2 * of_the_run.calibrate.images
    found = work(of_the_run, figures)["calibrate_validator"]
    assert calls(found, "validator") == pytest.approx(claims + again + 2 * again, abs=1)  # two paraphrases are shipped


def test_judges_are_calibrated_on_every_step_of_every_sweep(of_the_run: Params, figures: Throughputs) -> None:
    found = work(of_the_run, figures)["calibrate"]
    assert calls(found, "judge") == calls(found, "held-out judge") == 24 * 4 * 5 + 3 * 2 * 24


def test_without_feedback_nobody_remarks_and_nothing_is_enhanced_again(default: Params, figures: Throughputs) -> None:
    with_it = work(default, figures)["validate@validated"]
    without = work(changed(default, "stage1", feedback=False), figures)["validate@validated"]
    assert calls(with_it, "enhancer", "prompt") == calls(with_it, "validator", "remark") == with_it.images
    assert calls(without, "enhancer", "prompt") == calls(without, "validator", "remark") == 0


def test_one_round_at_most_draws_nothing_after_enhanced(default: Params, figures: Throughputs) -> None:
    found = work(changed(default, "stage1", max_rounds=1), figures)
    assert found["validate@validated"].images == found["best_of_n"].images == 0


def test_a_validator_that_asks_item_by_item_is_asked_as_often_as_there_are_items(
    default: Params, figures: Throughputs
) -> None:
    plain, items = work(default, figures), work(changed(default, "stage1", questions=True), figures)
    share = calls(items["validate@validated"], "validator") / calls(plain["validate@validated"], "validator")
    assert share == figures.common.items.value


# ------------------------------------------------------------------------------------------------ time and money


def test_the_default_run_is_estimated_as_the_readme_has_it(default: Params, figures: Throughputs) -> None:
    found = estimate(default, figures, "cpu", 1)
    assert 0.7 * min(README_SECONDS) < found.hours * 3600 < 1.3 * max(README_SECONDS)
    assert found.gpu_usd == found.api_usd == 0


def test_fine_tuning_takes_what_ddpo_pytorch_names_for_the_same_work(paper: Params, figures: Throughputs) -> None:
    """100 epochs on 8 A100 took its author about 4 hours; without checkpointing, and the reward cost nothing."""
    p = changed(paper, "finetune", gradient_checkpointing=False)
    cost = next(one for one in estimate(p, figures, "a100", 8).stages if one.stage == "finetune")
    assert 2 < (cost.seconds["drawing"] + cost.seconds["updates"]) / 8 / 3600 < 8


def test_eight_gpus_divide_what_processes_can_divide_and_nothing_else(paper: Params, figures: Throughputs) -> None:
    one, eight = (estimate(paper, figures, "a100", gpus).stages for gpus in (1, 8))
    start = figures.gpus["a100"].start.value
    for single, many in zip(one, eight, strict=True):
        alone = single.seconds.get("resamples", 0.0)
        shared = (single.wall - start - alone) / (8 if costs.launched(single.stage) else 1)
        assert many.wall - start - alone == pytest.approx(shared), single.stage


def test_a_server_is_asked_by_one_process_however_many_there_are(paper: Params) -> None:
    assert costs.divided("validate@validated", "validator llava15-7b", paper)
    assert not costs.divided("validate@validated", "validator gpt4", paper)


def test_idle_gpus_are_paid_and_not_counted_as_work(paper: Params, figures: Throughputs) -> None:
    one, eight = (estimate(paper, figures, "a100", gpus) for gpus in (1, 8))
    assert eight.gpu_usd == pytest.approx(eight.hours * 8 * figures.gpus["a100"].price.value)
    assert eight.gpu_usd > one.gpu_usd
    starts = 7 * sum(costs.launched(cost.stage) for cost in eight.stages) * figures.gpus["a100"].start.value
    assert eight.gpu_hours == pytest.approx(one.gpu_hours + starts / 3600)


def test_every_stage_of_the_dag_but_check_is_estimated(paper: Params, figures: Throughputs) -> None:
    listed = pipeline.stages(REPOSITORY / "dvc.yaml", REPOSITORY / "params.yaml")
    assert {stage.name for stage in listed} - {"check"} == set(work(paper, figures))


def test_stages_that_ask_or_draw_for_every_caption_can_be_launched_in_several_processes() -> None:
    alone = ("data", "calibrate", "calibrate_validator", "report")
    assert not any(costs.launched(stage) for stage in alone)
    assert all(costs.launched(stage) for stage in ("reference", "enhance", "generate@raw", "validate@combined"))
    assert all(costs.launched(stage) for stage in ("best_of_n", "finetune", "evaluate@raw"))


def test_half_of_the_side_is_a_quarter_of_the_drawing(paper: Params, figures: Throughputs) -> None:
    whole, small = paper, changed(paper, "model", size=256)
    cost = [estimate(p, figures, "a100", 1).stages for p in (whole, small)]
    (large,), (little,) = ([one for one in stages if one.stage == "generate@raw"] for stages in cost)
    assert little.seconds["drawing"] == pytest.approx(large.seconds["drawing"] / 4)


def test_without_guidance_the_network_runs_half_as_often(paper: Params, figures: Throughputs) -> None:
    guided, free = (changed(paper, "model", guidance=g) for g in (7.5, 1.0))
    seconds = [estimate(p, figures, "a100", 1).stages[5].seconds["drawing"] for p in (guided, free)]
    assert seconds[1] == seconds[0] / 2


def test_checkpointing_costs_one_more_forward(paper: Params, figures: Throughputs) -> None:
    with_it, without = (changed(paper, "finetune", gradient_checkpointing=on) for on in (True, False))
    updates = [
        next(c for c in estimate(p, figures, "a100", 1).stages if c.stage == "finetune").seconds["updates"]
        for p in (with_it, without)
    ]
    assert updates[0] / updates[1] == pytest.approx(4 / 3)


def test_overlapped_judging_hides_the_shorter_of_drawing_and_judging(paper: Params, figures: Throughputs) -> None:
    overlapped, plain = (changed(paper, "finetune", overlap_judging=overlaps) for overlaps in (True, False))
    (one,), (other,) = (
        [c for c in estimate(p, figures, "a100", 1).stages if c.stage == "finetune"] for p in (overlapped, plain)
    )
    assert other.wall - one.wall == pytest.approx(min(one.seconds["drawing"], one.seconds["judge llava16-7b"]))


def test_written_answers_take_longer_than_probabilities(paper: Params, figures: Throughputs) -> None:
    entry = paper.mllms["llava16-7b"].model_copy(update={"reading": "text"})
    written = paper.model_copy(update={"mllms": paper.mllms | {"llava16-7b": entry}})
    key = "judge llava16-7b"
    fast, slow = (estimate(p, figures, "a100", 1).stages[2].seconds[key] for p in (paper, written))
    assert slow > fast


def test_a_paid_endpoint_costs_its_tokens_at_the_prices_of_params(paper: Params, figures: Throughputs) -> None:
    found = estimate(changed(paper, "evaluate", judge="gpt4"), figures, "a100", 1)
    count = found.calls["held-out judge gpt4"]
    tokens = figures.mllms["gpt4"].image_tokens.value + figures.common.text_tokens_in.value  # type: ignore[union-attr]
    price = paper.mllms["gpt4"]
    dollars = tokens * price.usd_per_million_input_tokens + 1 * price.usd_per_million_output_tokens
    assert found.api_usd == pytest.approx(count * dollars / 1e6)
    assert found.reached["gpt4"] == "served elsewhere"
    assert found.gpu_hours < found.hours


def test_the_bottleneck_is_what_most_of_the_time_goes_into(paper: Params, figures: Throughputs) -> None:
    paper = changed(paper, "finetune", timestep_share=1.0)
    assert estimate(paper, figures, "a100", 1).bottleneck.startswith("updates (")
    slow = figures.mllms["llava16-7b"].parameters.model_copy(update={"value": 700})  # type: ignore[union-attr]
    found = figures.mllms["llava16-7b"].model_copy(update={"parameters": slow})
    figures = figures.model_copy(update={"mllms": figures.mllms | {"llava16-7b": found}})
    assert estimate(paper, figures, "a100", 1).bottleneck.startswith("judge llava16-7b (")


def test_judges_that_do_not_fit_beside_the_image_model_are_named(paper: Params, figures: Throughputs) -> None:
    fits, too_much = (table(estimate(paper, figures, gpu, 1)) for gpu in ("a100", "rtx4090"))
    assert "38.0 of 80 GB of each GPU\n" in fits  # 10 for SD 1.5, 14 for either judge
    assert "38.0 of 24 GB of each GPU: does not fit" in too_much


@pytest.mark.parametrize("gpu", ["rtx4090", "a100-40gb", "a100"])
@pytest.mark.parametrize("name", ["sdxl", "sd35"])
def test_a_published_model_has_its_hours_and_fits_a_card_of_24_gb(name: str, gpu: str, figures: Throughputs) -> None:
    found = estimate(profile.chosen(name), figures, gpu, 8)
    assert 1 < found.hours < 1000
    assert found.memory_gb < found.gpu_memory_gb
    assert "does not fit" not in table(found)


# ------------------------------------------------------------------------------------------------ as a program


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["estimate", *arguments])
    program.main()
    return capsys.readouterr().out


def test_the_table_has_every_stage_and_the_sums(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = run(monkeypatch, capsys, "paper", "--gpus", "8", "--gpu", "a100")
    for stage in pipeline.stages():
        assert f"\n{stage.name} " in page or stage.name == "check"
    for words in ("GPU hours", "dollars", "bottleneck", "in process", str(FIGURES)):
        assert words in page


def test_json_says_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(monkeypatch, capsys, "paper", "--gpu", "a100", "--json"))
    assert set(found) == set(Estimate.__dataclass_fields__)
    assert found["hours"] == pytest.approx(sum(stage["wall"] for stage in found["stages"]) / 3600)


def test_an_unknown_gpu_lists_the_known_ones(default: Params, figures: Throughputs) -> None:
    with pytest.raises(UserError, match="knows no 'h200'; there are a100, a100-40gb, rtx4090, cpu"):
        estimate(default, figures, "h200", 1)


def test_no_gpu_is_refused(default: Params, figures: Throughputs) -> None:
    with pytest.raises(UserError, match="at least 1, not 0"):
        estimate(default, figures, "cpu", 0)


@pytest.mark.parametrize(
    ("section", "values", "gpu", "key"),
    [
        ("stage1", {"mllm": "smollm2"}, "a100", r"mllms\.smollm2"),
        ("model", {"name": "somebody/else"}, "a100", r"image_models\.somebody/else"),
        ("evaluate", {}, "cpu", r"extractors\.inception-v3-compat\.images\.cpu"),
    ],
)
def test_a_figure_that_is_missing_is_named_by_its_key(
    paper: Params, figures: Throughputs, section: str, values: dict, gpu: str, key: str
) -> None:
    with pytest.raises(UserError, match=f"has no {key}: add it with value, unit and source"):
        estimate(changed(paper, section, **values), figures, gpu, 1)


def test_an_mllm_without_throughput_on_this_machine_is_named_by_its_key(default: Params, figures: Throughputs) -> None:
    with pytest.raises(UserError, match=r"has no mllms\.llava16-7b\.questions\.cpu: add it"):
        estimate(changed(default, "stage1", mllm="llava16-7b"), figures, "cpu", 1)


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="no profile is called 'papre'"):
        profile.chosen("papre")
