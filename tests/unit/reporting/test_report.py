import base64
import csv
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_up_run import history, write_run
from PIL import Image

from t2i_feedback import arms
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import save_png
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import EpochRow, EvaluationRow, FidRow, ImageRow, RoundRow, read_rows, write_rows
from t2i_feedback.reporting import alarm, comparisons, judges, page, plots, series, stories, tables, training, verdict
from t2i_feedback.reporting.evidence import Evidence
from t2i_feedback.reporting.preferred import Preferred
from t2i_feedback.reporting.section import Settings
from t2i_feedback.rewards import answers, human
from t2i_feedback.stages import report

pytestmark = pytest.mark.slow  # draws the whole report again and again


def summary_numbers() -> dict:
    return json.loads(paths.NUMBERS.read_text())["summary"]


SWEEPS = paths.JUDGE_PLOTS / "sweeps.png"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_NO_TRACKING", "1")
    write_run(tmp_path)
    return tmp_path


def gathered() -> Evidence:
    return report.gather(load(Settings))


def test_stage_writes_page_numbers_and_series(run: Path) -> None:
    report.main()
    text = paths.REPORT.read_text()
    for heading in ("The arms, measured alike", "Paired comparisons", "The validator at work", "Beside the paper"):
        assert heading in text
    assert "not comparable" in text
    assert re.search(r"balanced accuracy</th><td>0\.930</td>", text)
    assert re.search(r"invalid</th><td>5\.0 %</td>", text)
    assert "P(yes) of 0.5 or more (stage1.threshold). On these images 0.40 would be best" in text
    assert text.count("data:image/png;base64," + base64.b64encode(SWEEPS.read_bytes()).decode()) == 1
    assert "EfficientNet-Lite0 is not Inception" in text
    numbers = summary_numbers()
    assert all(isinstance(value, (int, float)) for value in numbers.values())
    assert numbers["alignment_validated_minus_raw_low"] < numbers["alignment_validated_minus_raw"]
    assert sorted(path.name for path in paths.PLOTS.glob("*.*")) == [
        "arms.csv",
        "calibration.csv",
        "fid_by_n.csv",
        "images.png",
        "reward.csv",
        "rounds.csv",
    ]
    with (paths.PLOTS / "reward.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(epoch) for epoch in range(1, 11)]


def answered(adapter: str, *preferred: str) -> Path:
    """Answers of a person about images before and after fine-tuning, on the page of `make feedback`. Their file."""
    file = human.sheet_of(load(Settings).preference, paths.feedback()).comparisons
    for i, side in enumerate(preferred):
        answers.append(file, Preferred(adapter=adapter, caption_id=i, preferred=side))
    return file


def drawn_by(adapter: str) -> None:
    arm = gathered().arms[arms.finetuned().name]
    for row in arm.images.values():
        save_png(Image.new("RGB", (8, 8)), arm.folder / row.image, {"parameters": json.dumps({"adapter": adapter})})


def test_what_a_person_preferred_is_told_with_its_interval(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    report.main()
    assert 'id="preferred"' not in paths.REPORT.read_text() and "person_preferred_after" not in summary_numbers()
    drawn_by("this")
    answered("another", "before")  # of an adapter that is gone
    assert gathered().preferred is None
    answered("this", *["after"] * 8, *["before"] * 2, *["neither"] * 5)
    report.main()
    assert (
        "A person was shown 15 held-out captions, before and after fine-tuning, blind: the image after it was "
        "preferred 8 times of 10; 5 were ties (80 %, 95 % interval 49 % to 94 %)."
    ) in paths.REPORT.read_text()
    numbers = {k: v for k, v in summary_numbers().items() if k.startswith("person_preferred_")}
    assert numbers.pop("person_preferred_after_share_low") == pytest.approx(0.4902, abs=1e-4)
    assert numbers.pop("person_preferred_after_share_high") == pytest.approx(0.9433, abs=1e-4)
    counts = {"after": 8, "before": 2, "neither": 5, "after_share": 0.8}
    assert numbers == {f"person_preferred_{name}": value for name, value in counts.items()}


def test_only_ties_have_no_share(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    drawn_by("this")
    answered("this", "neither", "neither")
    report.main()
    assert "2 held-out captions, before and after fine-tuning, blind: neither image" in paths.REPORT.read_text()
    assert "person_preferred_after_share" not in summary_numbers()


@pytest.mark.parametrize("broken", ['{"adapter": 1}', "\x00\x07 nothing", '{"preferred": "both"}'])
def test_a_broken_line_of_comparisons_is_a_warning(
    run: Path, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    drawn_by("this")
    file = answered("this", "after")
    file.write_text(file.read_text() + broken + "\n")
    report.main()
    assert re.search(r"warning: \S+comparisons\.jsonl:2 is no answer .*delete that line", capsys.readouterr().err)
    assert 'id="preferred"' not in paths.REPORT.read_text()
    file.write_text(file.read_text().replace(broken, '{"adapter": "th'))  # a crash cut it short: it was never said
    report.main()
    assert 'id="preferred"' in paths.REPORT.read_text()


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    report.main()
    first = paths.REPORT.read_bytes()
    report.main()
    assert paths.REPORT.read_bytes() == first


def test_known_effects_are_found_with_their_sign(run: Path) -> None:
    evidence = gathered()
    found = {c.key: c for c in [*comparisons.stage1(evidence), *comparisons.stage2(evidence)]}
    assert found["alignment_enhanced_minus_raw"].direction == 1
    assert found["held_out_score_finetuned_minus_raw"].direction == 1
    assert found["held_out_score_finetuned_minus_raw"].interval.n == 23  # one answer was not valid
    assert found["brightness_finetuned_minus_raw"].direction == -1
    ratio = found["alignment_finetuned_over_raw"]
    assert ratio.interval.value == pytest.approx(ratio.arm_value / ratio.base_value)
    assert comparisons.diversity_ratio(evidence, arms.finetuned()) == 1.0
    [effect] = comparisons.feedback_effects(evidence)
    assert effect.interval.n == 16  # captions with a second image


def test_verdicts_say_plainly_when_an_arm_does_not_help(run: Path) -> None:
    raw = read_rows(paths.evaluation("raw") / "per_image.jsonl", EvaluationRow)
    worse = [row.model_copy(update={"alignment": row.alignment - 0.1}) for row in raw]  # type: ignore[operator]
    write_rows(paths.evaluation("enhanced") / "per_image.jsonl", worse)
    write_rows(paths.evaluation("best_of_n") / "per_image.jsonl", raw)
    outcomes = {found.title: found.outcome for found in verdict.verdicts(gathered())}
    assert outcomes["Enhanced against raw"] == "hurts"
    assert outcomes["Best of n against raw"] == "no measurable effect"
    assert outcomes["Validated against raw"] == "helps"
    headline = verdict.headline(gathered())
    assert headline == (
        "Images follow their captions better than raw’s with validated and combined; no measurable difference with "
        "best of n; worse with enhanced. Fine-tuning moved images towards the preference."
    )


def test_a_gain_that_cost_what_the_captions_say_is_no_help(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = paths.evaluation("finetuned") / "per_image.jsonl"
    told = next(one for one in verdict.verdicts(gathered()) if one.title == "Fine-tuned against raw")
    assert told.outcome == "helps"
    rows = read_rows(tuned, EvaluationRow)
    write_rows(tuned, [row.model_copy(update={"alignment": 0.5 * (row.alignment or 0)}) for row in rows])
    told = next(one for one in verdict.verdicts(gathered()) if one.title == "Fine-tuned against raw")
    assert told.outcome == "may have collapsed" and "less than the 90 % that rule out a collapse" in told.text
    assert verdict.headline(gathered()).endswith("towards the preference, but they may have collapsed.")
    write_rows(paths.ADAPTER / "history.jsonl", read_rows(paths.ADAPTER / "history.jsonl", EpochRow)[:-1])
    report.main()
    assert "report: alarm: Training ended after epoch" in capsys.readouterr().out


def test_a_run_without_facts_is_told_without_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, captions=6, images_are_measured=False)
    evidence = gathered()
    text = page.render(evidence)
    assert "Alignment was not measured" in text
    assert "FID is 30.12 ± 0.50" in text
    assert comparisons.splits(evidence) == {}


def test_missing_optional_inputs_become_sentences(run: Path) -> None:
    calibrated = (paths.CALIBRATION, paths.VALIDATOR)
    for gone in (*calibrated, paths.ADAPTER, paths.arm_numbers("finetuned"), paths.arm_numbers("validated")):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    report.main()
    text = paths.REPORT.read_text()
    assert "Nothing was fine-tuned" in text
    assert "The judges were not calibrated" in text
    assert "The validator was not calibrated" in text
    assert "The fine-tuned arm was not run" in text
    assert "There are no rounds to tell of" in text


def test_no_arm_at_all_is_still_a_page(run: Path) -> None:
    shutil.rmtree(paths.evaluation("raw").parent)
    report.main()
    assert "No arm has been evaluated yet" in paths.REPORT.read_text()


def test_a_stamp_is_over_the_page(run: Path) -> None:
    changed = yaml.safe_load(paths.PARAMS.read_text())
    changed["report"]["stamp"] = "REHEARSAL"
    paths.PARAMS.write_text(yaml.safe_dump(changed))
    page_text = page.render(gathered())
    assert "<h1>REHEARSAL. " in page_text and "<title>REHEARSAL: " in page_text


def test_item_by_item_the_threshold_is_called_a_share_of_items(run: Path) -> None:
    changed = yaml.safe_load(paths.PARAMS.read_text())
    changed["stage1"]["questions"] = True
    paths.PARAMS.write_text(yaml.safe_dump(changed))
    assert judges.validator_text(gathered()).startswith("Accepted is what has a share of items of 0.5 or more")


def test_an_arm_of_another_protocol_stands_in_no_table_plot_or_comparison_with_others(run: Path) -> None:
    report.main()
    before = summary_numbers()
    card = paths.evaluation("finetuned") / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"resolution": 32}))
    report.main()
    text = paths.REPORT.read_text()
    assert "fine-tuned, measured under another protocol" in text
    assert "resolution (64 there, 32 here)" in text
    with (paths.PLOTS / "arms.csv").open() as file:
        assert "finetuned" not in [line["arm"] for line in csv.DictReader(file)]
    assert any("finetuned" in key for key in before)
    assert not any("finetuned" in key for key in summary_numbers())


def test_fid_against_n_is_drawn_and_written(run: Path) -> None:
    rows = [FidRow(n=n, fid=60 - n, fid_std=1.5 if n < 24 else 0) for n in (6, 12, 24)]
    write_rows(paths.evaluation("raw") / "fid_by_n.jsonl", rows)
    report.main()
    assert "FID of raw is 54.0 with 6 images and 36.0 with 24" in paths.REPORT.read_text()
    with (paths.PLOTS / "fid_by_n.csv").open() as file:
        assert next(csv.DictReader(file)) == {"arm": "raw", "n": "6", "fid": "54.0", "fid_std": "1.5"}


def test_captions_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, captions=4)
    paths.EVALUATION_CAPTIONS.unlink()
    with pytest.raises(UserError, match="dvc repro"):
        report.main()


# ------------------------------------------------------------------------------------------------ the loop


def test_accepted_against_rejected_uses_all_rounds_and_skips_masked() -> None:
    rows = [
        RoundRow(caption_id=i, round=r, alignment=a, whole=None, p_yes=None, accepted=accepted)
        for i in range(10)
        for r, a, accepted in ((1, 0.4, False), (2, 0.8, True), (3, 0.1, None), (4, None, True))
    ]
    split = comparisons.accepted_against_rejected(rows, resamples=100, seed=0)
    assert split is not None
    assert (split.accepted, split.rejected) == (10, 10)
    assert split.interval.value == pytest.approx(0.4)
    assert split.interval.low == pytest.approx(0.4)
    assert comparisons.accepted_against_rejected(rows[1:2], resamples=100, seed=0) is None


def ending(caption_id: int, *accepted: bool | None) -> list[ImageRow]:
    return [
        ImageRow(caption_id=caption_id, round=number, prompt="", image="", accepted=verdict)
        for number, verdict in enumerate(accepted, 1)
    ]


def test_stories_show_every_kind_of_ending() -> None:
    rounds = {
        1: ending(1, True),
        2: ending(2, True),
        3: ending(3, False, True),
        4: ending(4, False, False, True),
        5: ending(5, False, False),
        6: ending(6, None),
        7: ending(7, False, True),
    }
    assert stories.choose(rounds, 6) == [
        ("Accepted in round 3", 4),
        ("Never accepted", 5),
        ("Accepted at once", 1),
        ("Left without a verdict", 6),
        ("Accepted in round 2", 3),
        ("Accepted in round 2", 7),
    ]
    assert stories.choose(rounds, 0) == []


# ------------------------------------------------------------------------------------------------ the alarm


def test_no_alarm_when_the_held_out_judge_follows() -> None:
    assert alarm.alarms(history(random.Random(0)), 10) == []


def test_alarm_when_only_the_reward_rises() -> None:
    [text] = alarm.alarms(history(random.Random(0), held_out_gain=0.0), 10)
    assert "exploit the judge" in text


def test_alarm_when_images_become_alike() -> None:
    [text] = alarm.alarms(history(random.Random(0), last_diversity=0.3), 10)
    assert "alike" in text


def test_alarm_when_nothing_can_be_learnt() -> None:
    rows = [row.model_copy(update={"dead_groups": 0.9}) for row in history(random.Random(0))]
    [text] = alarm.alarms(rows, 10)
    assert "90%" in text


def test_alarm_when_the_policy_left_the_base_model() -> None:
    rows = [row.model_copy(update={"kl": 3.0}) for row in history(random.Random(0))]
    [text] = alarm.alarms(rows, 10)
    assert "KL to the base model reached 3" in text


def test_alarm_when_training_ended_at_a_bound() -> None:
    [text] = alarm.alarms(history(random.Random(0)), 12)
    assert "after epoch 10 of 12" in text


def asked(evidence: Evidence, row: dict[str, object], **keys: object) -> Evidence:
    """The same run with other epochs and other parameters of fine-tuning."""
    epochs = [epoch.model_copy(update=row) for epoch in evidence.history]
    return replace(evidence, history=epochs, settings=evidence.settings.model_copy(update=keys))


def test_the_report_says_how_many_images_the_user_was_asked_about(run: Path) -> None:
    found = asked(gathered(), {"asked": 64})
    everything = f"640 of 640 images ({tables.percent(1)}): finetune.acquisition all."
    assert training.feedback_text(found) == f"The user was asked about {everything}"
    text = training.feedback_text(asked(gathered(), {"asked": 16, "surrogate_error": 0.5}, acquisition="random"))
    assert f"asked about 160 of 640 images ({tables.percent(0.25)}), chosen by finetune.acquisition random" in text
    assert "off by 0.50 points at first and by 0.50 at last" in text
    alone = asked(gathered(), {"asked": 16}, acquisition="random", surrogate_weight=0.0)
    assert training.feedback_text(alone).endswith("; nothing was learnt from the others.")


def test_invalid_scores_are_counted_among_those_that_were_asked_for(run: Path) -> None:
    found = asked(gathered(), {"asked": 16, "masked": 2}, acquisition="random")
    assert "20 of 160 scores were invalid" in training.reward_text(found)


def test_the_reward_against_the_users_answers_is_drawn_by_their_running_sum(run: Path) -> None:
    found = asked(gathered(), {"asked": 16})
    assert "is 6.50 after 160 answers of the user" in plots.reward_by_calls(found.history).text
    assert "The reward against the user’s answers" in page.render(found)


def test_raw_values_of_rewards_have_columns_in_the_series(run: Path) -> None:
    found = asked(gathered(), {"parts": {"brightness": 80.0, "preference": 4.0}})
    series.write(found, paths.PLOTS)
    with (paths.PLOTS / "reward.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["raw.brightness"], row["raw.preference"]) for row in rows} == {("80.0", "4.0")}
    assert "parts" not in rows[0]
