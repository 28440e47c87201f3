"""The paper's tables: which experiment stands in which row, what is trusted of it, and what is written."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import warm
import yaml

from t2i_feedback import needs, params
from t2i_feedback.foundation import checkpoints, lockfile, paths, yaml_files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import read
from t2i_feedback.reporting import paper
from t2i_feedback.tools.paper import __main__ as run
from t2i_feedback.tools.paper import compare, experiments, write
from t2i_feedback.tools.paper.rows import Figure, table1, table2
from t2i_feedback.tools.paper.write import Measured

pytestmark = pytest.mark.slow  # needs DVC

REPOSITORY = Path(__file__).parents[3]
CARD = {"n": 100, "steps": 50, "extractor": "inception-v3-compat", "validator": "gpt4", "judge_reading": "text"}
FIGURES = {
    "fid": Figure(26.0, 0.4, 0.4),
    "is": Figure(33.0, 0.5, 0.5),
    "rounds_mean": Figure(1),
    "contrast": Figure(72.0, None, 0.3),
    "brightness": Figure(120.0, None, 0.6),
}


def measured(**card: object) -> Measured:
    return Measured("abc", FIGURES, CARD | card, 100)


def everything(layout, **changed) -> dict:
    return {(row.experiment, row.arm): changed.get(row.experiment, measured()) for row in layout.rows}


# ------------------------------------------------------------------------------------------------ rows


def test_table_1_has_the_papers_13_rows_by_7_experiments() -> None:
    layout = table1()
    assert [(*row.names, row.paper["fid"].value) for row in layout.rows] == [row[:3] for row in paper.STAGE1]
    assert layout.experiments == ["raw", *paper.ENTRIES]
    assert {experiment: layout.arms(experiment) for experiment in layout.experiments} == {
        "raw": ["raw"],
        **{entry: ["enhanced", "validated"] for entry in paper.ENTRIES},
    }


def test_every_row_names_an_entry_of_the_catalogue() -> None:
    assert set(paper.ENTRIES) <= set(params.load(REPOSITORY / "params.yaml").mllms)


def test_both_rows_of_table_2_come_from_one_experiment() -> None:
    assert [(row.experiment, row.arm) for row in table2().rows] == [("finetuned", "raw"), ("finetuned", "finetuned")]


# ------------------------------------------------------------------------------------------------ differences


def test_the_interval_adds_the_squares_of_both_errors() -> None:
    found = compare.difference(Figure(26.0, 0.3, 0.3), Figure(25.0, 0.4, 0.4))
    assert found is not None and found.value == 1.0
    assert found.high - found.value == pytest.approx(1.96 * 0.5)
    assert found.value - found.low == pytest.approx(1.96 * 0.5)


def test_where_the_paper_prints_no_spread_the_interval_is_ours_alone() -> None:
    found = compare.difference(Figure(26.0, 0.3, 0.3), Figure(25.0))
    assert found is not None and found.half == pytest.approx(1.96 * 0.3)


def test_one_round_by_definition_has_no_difference() -> None:
    assert compare.difference(Figure(1), Figure(1)) is None


def test_the_error_of_rounds_is_of_their_mean_for_both() -> None:
    metrics = {"fid": 1.0, "fid_std": 0.1, "is": 2.0, "is_std": 0.1, "rounds_mean": 2.0, "rounds_std": 1.5}
    images = [{"contrast": 10.0, "brightness": 100.0}, {"contrast": 30.0, "brightness": 120.0}]
    figures = compare.measured(metrics, images, loop=True)
    assert figures["rounds_mean"] == Figure(2.0, 1.5, 1.5 / math.sqrt(2))
    assert compare.with_error(Figure(2.39, 1.64), "rounds_mean", 100).error == pytest.approx(0.164)
    assert compare.measured(metrics, images, loop=False)["rounds_mean"] == Figure(1)


def test_light_has_the_standard_error_of_a_mean_over_images() -> None:
    metrics = {"fid": 1.0, "fid_std": 0.1, "is": 2.0, "is_std": 0.1}
    images = [{"contrast": value, "brightness": 100.0} for value in (10.0, 20.0, 30.0, 40.0)]
    contrast = compare.measured(metrics, images, loop=False)["contrast"]
    assert contrast.value == 25.0
    assert contrast.error == pytest.approx(12.909944 / 2)


# ------------------------------------------------------------------------------------------------ protocols


def test_rows_of_different_validators_compare() -> None:
    other = {"validator": "llava15-7b", "judge_reading": "probability", "templates": "general 1"}
    other |= {"validator_asked": "no temperature"}
    assert compare.deviations(CARD | other, CARD) == []


@pytest.mark.parametrize(("changed", "said"), [({"steps": 20}, "steps 20, not 50"), ({"n": 30000}, "n 30000, not 100")])
def test_a_row_of_another_protocol_stands_in_no_column_and_says_in_what_it_deviates(changed: dict, said: str) -> None:
    layout = table1()
    made = write.lines(layout, everything(layout, gpt4=measured(**changed)))
    refused = [line for line in made if line.missing]
    assert {line.row.experiment for line in refused} == {"gpt4"}
    assert all(line.ours is None and line.missing == f"another protocol: {said}" for line in refused)


# ------------------------------------------------------------------------------------------------ written


def test_markdown_has_every_row_with_ours_the_papers_and_the_difference() -> None:
    layout = table1()
    text = write.markdown(layout, write.lines(layout, everything(layout)), "", ["paper"])
    raw = next(row for row in text.splitlines() if row.startswith("| None | None |"))
    assert "| 26.00 ± 0.40 | 24.95 ± 0.51 | +1.05 [" in raw
    assert raw.endswith("| 1 | 1 | – |")
    assert sum(row.startswith("| ") for row in text.splitlines()) == 1 + 1 + 13
    assert compare.FORMULA in text and "* steps: 50" in text and "validator" not in text.partition("Ours")[2].lower()


def test_numbers_of_another_extractor_have_no_difference_from_the_papers() -> None:
    layout = table2()
    own = {row.arm: measured(extractor="efficientnet-lite0") for row in layout.rows}
    text = write.markdown(layout, write.lines(layout, {("finetuned", arm): one for arm, one in own.items()}), "", [])
    row = next(row for row in text.splitlines() if row.startswith("| Fine-tuned |"))
    assert row.startswith(
        "| Fine-tuned | 26.00 ± 0.40 | 29.28 | – | 33.00 ± 0.50 | 32.19 ± 1.39 | – | 72.00 | 71.60 | +0.40 ["
    )
    assert "FID and IS are of efficientnet-lite0, not of Inception" in text


def test_a_missing_row_says_why_and_keeps_the_papers_numbers() -> None:
    layout = table1()
    text = write.markdown(layout, write.lines(layout, everything(layout, gpt4="failed: no <key>")), "", ["paper"])
    assert "| GPT-4 | GPT-4 | – | 29.78 ± 0.57 | – |" in text
    assert "* GPT-4 / None: failed: no &lt;key>" in text


@pytest.mark.parametrize("layout", [table1(), table2()])
def test_a_stamp_is_over_the_table_in_all_three_forms(layout) -> None:
    made = write.lines(layout, everything(layout))
    assert write.markdown(layout, made, "REHEARSAL", []).startswith(f"# REHEARSAL. Table {layout.number}. ")
    assert write.plain(layout, made, "REHEARSAL", [])["title"].startswith("REHEARSAL")
    rows = list(csv.DictReader(io.StringIO(write.comma_separated(layout, made, "REHEARSAL"))))
    assert len(rows) == len(layout.rows) and {row["stamp"] for row in rows} == {"REHEARSAL"}


def test_csv_and_json_have_the_numbers_unrounded() -> None:
    layout = table2()
    made = write.lines(layout, everything(layout))
    row = list(csv.DictReader(io.StringIO(write.comma_separated(layout, made, ""))))[1]
    assert (float(row["fid_ours"]), float(row["fid_paper"]), row["fid_paper_spread"]) == (26.0, 29.28, "")
    assert float(row["fid_low"]) == pytest.approx(26.0 - 29.28 - 1.96 * 0.4)
    content = json.loads(json.dumps(write.plain(layout, made, "", ["paper"])))
    assert content["rows"][1]["difference"]["contrast"]["high"] == pytest.approx(72 - 71.60 + 1.96 * 0.3)
    assert content["rows"][1]["card"] == CARD


# ------------------------------------------------------------------------------------------------ experiments


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A git and DVC repository with the real parameters and profiles, three arms that take no time, and in it
    `make table1` for three entries, two at a time, of which one has failed."""
    root = tmp_path_factory.mktemp("made")
    for name in ("params.yaml", "profiles"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    (root / ".gitignore").write_text("/data\n/.cache\n/mlflow.db*\n/mlartifacts\n")
    for name in ("sd", "mllm", "judge"):  # of which no weight is read
        (root / "models/postcards" / name).mkdir(parents=True)
        (root / "models/postcards" / name / "config.json").write_text("{}")
    (root / "src").mkdir()
    (root / "src/arm.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(yaml.safe_dump(DAG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, value in (("NAME", "test"), ("EMAIL", "test@localhost")):
            patch.setenv(f"GIT_AUTHOR_{name}", value)
            patch.setenv(f"GIT_COMMITTER_{name}", value)
        git("init", "--quiet")
        dvc("init", "--quiet")
        commit("all")
        make(patch, "--rows", "gpt4", "llava15-7b", "llava15-13b", "--jobs", "2")
        yield root


@pytest.fixture
def repository(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


STAGE = """
import json, pathlib, sys, yaml
arm, p = sys.argv[1], yaml.safe_load(open("params.yaml"))
if p["stage1"]["mllm"] == "gpt4":
    sys.exit("evaluate: the key was turned away")
folder = pathlib.Path("data/evaluation", arm)
folder.mkdir(parents=True, exist_ok=True)
(folder / "card.json").write_text(json.dumps({"n": 4, "steps": p["model"]["steps"]}))
images = [{"contrast": 10.0 + i, "brightness": 100.0} for i in range(4)]
(folder / "per_image.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in images))
numbers = {"fid": 20.0 + len(arm), "fid_std": 0.5, "is": 3.0, "is_std": 0.1, "rounds_mean": 1.5, "rounds_std": 0.5}
(folder / "numbers.json").write_text(json.dumps(numbers))
print("drawn")
"""
DAG = {
    "stages": {
        "check": read(REPOSITORY / "dvc.yaml")["stages"]["check"]
        | {"cmd": f"PYTHONPATH={REPOSITORY / 'src'} python -m t2i_feedback.stages.check"},
        "evaluate": {
            "matrix": {"arm": ["raw", "enhanced", "validated"]},
            "cmd": "python src/arm.py ${item.arm}",
            "deps": ["src/arm.py", "data/checked/model.name"],
            "params": ["seed", "model", "stage1.mllm"],
            "outs": ["data/evaluation/${item.arm}"],
        },
    }
}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def commit(message: str) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", message)


def dvc(*arguments: str) -> str:
    environment = warm.environment(os.environ | {"DVC_NO_ANALYTICS": "1"})
    command = ["dvc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def make(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    """The program on table 1 with the quick profile; the JSON that it wrote. None of its rows wants a GPU here."""
    with monkeypatch.context() as patch, suppress(SystemExit):  # a row has failed
        patch.setattr(run, "lacking", lambda p: "")
        patch.setattr(sys, "executable", shutil.which("python", path=warm.environment(os.environ)["PATH"]))
        patch.setattr(sys, "argv", ["paper_tables", "table1", "--profile", "quick", *arguments])
        run.main()
    return json.loads(Path("metrics/table1.json").read_text())


def present(table: dict) -> list[str]:
    return sorted(f"{row['experiment']} {row['arm']}" for row in table["rows"] if row["ours"])


def runs() -> list[tuple[str, dict[str, float]]]:
    """MLflow's runs: name and metrics."""
    script = (
        "import json, mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "found = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print(json.dumps([[r.info.run_name, r.data.metrics] for r in found]))"
    )
    environment = warm.environment(os.environ)
    done = subprocess.run(["python", "-c", script], check=True, capture_output=True, text=True, env=environment)
    return [(name, metrics) for name, metrics in json.loads(done.stdout)]


THERE = [  # sorted
    "llava15-13b enhanced",
    "llava15-13b validated",
    "llava15-7b enhanced",
    "llava15-7b validated",
    "raw raw",
]


def table() -> dict:
    return json.loads(Path("metrics/table1.json").read_text())


def test_a_row_that_fails_stops_no_other_and_says_why(repository: Path) -> None:
    assert present(table()) == THERE
    reasons = {row["experiment"]: row["missing"] for row in table()["rows"] if row["missing"]}
    assert reasons["gpt4"].startswith("failed: evaluate: the key was turned away (`make table1`")
    assert reasons["cogvlm"].startswith("not run with these parameters")


def test_the_workspace_stays_as_it_was(repository: Path) -> None:
    assert git("status", "--porcelain", "--", "params.yaml", "dvc.lock", "src") == ""


def test_every_experiment_is_one_mlflow_run_of_its_own_arms(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, "--collect")  # publishes again
    found = runs()
    assert sorted(name for name, _ in found) == ["quick-llava15-13b", "quick-llava15-7b", "quick-raw"]
    metrics = dict(found)["quick-llava15-7b"]
    assert metrics["arms.validated.fid"] == 29.0
    assert not any(name.startswith("arms.raw") for name in metrics)


def test_the_same_command_after_another_commit_tries_what_failed_and_nothing_else(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Path("note.txt").write_text("not code")
    commit("another")
    shutil.rmtree(Path(".cache/tables"))
    make(monkeypatch, "--rows", "gpt4", "llava15-7b")
    said = capsys.readouterr().out
    assert "raw: done before" in said and "llava15-7b: done before" in said
    assert "gpt4: failed: evaluate: the key" in said
    assert [log.name for log in Path(".cache/tables").glob("*.log")] == ["quick-gpt4.log"]
    assert present(table()) == THERE


def test_changed_code_or_parameters_make_a_row_out_of_date(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("src/arm.py").write_text(STAGE.replace("0.5", "0.6"))
    assert present(make(monkeypatch, "--collect")) == []
    Path("src/arm.py").write_text(STAGE)
    assert present(make(monkeypatch, "--collect")) == THERE
    before = Path("profiles/quick.yaml").read_text()
    Path("profiles/quick.yaml").write_text("model: {steps: 7}\n")
    assert present(make(monkeypatch, "--collect")) == []
    Path("profiles/quick.yaml").write_text(before)


def test_metrics_that_an_experiment_did_not_make_are_not_its_own(repository: Path) -> None:
    one = run.plan(table1(), "raw", ["quick"])
    found = experiments.find(one.name, one.content, checkpoints.digests(one.params))
    assert found is not None
    files = experiments.Files(found)
    assert isinstance(experiments.read(files, "raw", one.content), Measured)
    none = "experiment quick-raw holds no numbers of arm validated"
    assert experiments.read(files, "validated", one.content) == none
    other = json.loads(json.dumps(one.content)) | {"seed": 1}
    assert experiments.read(files, "raw", other) == "experiment quick-raw measured arm raw with another seed"


def test_a_number_is_the_same_however_yaml_writes_it() -> None:
    """A user writes 1e-4 or 0.00003, DVC 0.0001 or 3e-05."""
    locked = {
        "params": {"params.yaml": {"finetune": yaml_files.parse("{learning_rate: 0.0001, kl_weight: 3e-05}", "")}}
    }
    now = yaml_files.parse("finetune: {learning_rate: 1e-4, kl_weight: 0.00003}", "")
    assert lockfile.changed(locked, now) == {}
    assert lockfile.changed(locked, yaml_files.parse("finetune: {learning_rate: 2e-4, kl_weight: 3e-05}", "")) != {}


def test_a_cleared_cache_is_said_and_stops_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".dvc/cache").rename(".dvc/elsewhere")
    row = make(monkeypatch, "--collect")["rows"][0]
    Path(".dvc/elsewhere").rename(".dvc/cache")
    assert row["ours"] is None and "no longer in DVC's cache" in row["missing"]


# ------------------------------------------------------------------------------------------------ before it starts


@pytest.fixture
def paper_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return run.plan(table1(), "gpt4", ["paper"]).params


def test_without_a_gpu_one_line_says_who_wants_one(paper_params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_accelerator", lambda: False)
    said = run.lacking(paper_params)
    assert "no GPU is seen" in said and "nvidia-smi" in said and "model, mllms.llava16-7b" in said
    assert "\n" not in said


def test_without_a_key_or_a_hub_one_line_says_what_to_do(paper_params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_accelerator", lambda: True)
    monkeypatch.setattr(needs, "cached", lambda model, file, revision: False)
    monkeypatch.setattr(needs, "hub_answers", lambda seconds: False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "mllms.gpt4: the environment variable OPENAI_API_KEY is not set" in run.lacking(paper_params)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 && hf download llava-hf/" in run.lacking(
        paper_params
    )
    monkeypatch.setattr(needs, "hub_answers", lambda seconds: True)
    assert run.lacking(paper_params) == ""


def test_the_default_run_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(run, "_accelerator", lambda: False)
    monkeypatch.setattr(needs, "hub_answers", lambda seconds: False)
    assert run.lacking(params.load()) == ""


def test_profiles_are_applied_in_their_order(paper_params) -> None:
    one = run.plan(table1(), "cogvlm", ["paper", "coco30k"])
    assert (one.name, one.params.data.evaluation_captions) == ("paper-coco30k-cogvlm", 30000)
    assert one.params.stage1.mllm == "cogvlm"
    assert "stage1.mllm=cogvlm" in one.settings and "data.evaluation_captions=30000" in one.settings
    assert one.targets == ("evaluate@enhanced", "evaluate@validated")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--rows", "gtp4"], "ROWS: gtp4[?] Table 1 has raw, llava15-7b"), (["--jobs", "0"], "JOBS: '0' is not")],
)
def test_bad_options_are_one_line(arguments: list[str], said: str, paper_params, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["paper_tables", "table1", *arguments])
    with pytest.raises(UserError, match=said):
        run.main()


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "date\nRunning stage 'enhance':\n> python\nenhance: mllms.gpt4: no key\nERROR: failed to reproduce\n",
            "enhance: mllms.gpt4: no key",
        ),
        ("date\nERROR: Unable to acquire lock\n", "ERROR: Unable to acquire lock"),
        ("date\nRunning stage 'enhance':\n> python\nERROR: failed\n", "ERROR: failed"),
    ],
)
def test_the_reason_is_what_the_stage_said_last(log: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert experiments.reason(tmp_path / "log") == why


def test_where_table_files_lie_no_stage_writes() -> None:
    dag = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    assert "table1" not in json.dumps(dag) and str(paths.METRICS) == "metrics"
