import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import tracked
import warm
from dvc.utils.serialize import dump_yaml, load_yaml
from made_up_run import REPOSITORY, STAGES, Stage, write_lock, write_run

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.stages import report
from t2i_feedback.tools import publish as tool
from t2i_feedback.tracking import publish
from t2i_feedback.tracking.streaming import stage_run

pytestmark = pytest.mark.slow  # needs MLflow


def type_in(before: str, after: str) -> None:
    """Change params.yaml by hand."""
    text = paths.PARAMS.read_text()
    assert text.count(before) == 1
    paths.PARAMS.write_text(text.replace(before, after))


def test_publishing_twice_is_once_and_other_params_are_another_run(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    assert publish.publish()
    [run] = tracked.parents()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["arms.raw.fid"] == pytest.approx(30.123)
    assert run.data.params["finetune.judge"] == "postcards"
    assert run.data.tags["templates"] == "postcards 0123456789ab"
    curve = tracked.client().get_metric_history(run.info.run_id, "finetune.curve.reward_mean")
    assert [point.step for point in curve] == list(range(1, 11))
    artifacts = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "models/lora/history.jsonl").exists()
    assert not (Path.cwd() / "mlartifacts").exists()
    assert not (Path.cwd() / "mlruns").exists()
    type_in("\nseed: ", "\nseed: 1")
    write_lock(STAGES)
    assert publish.publish()
    assert len(tracked.parents()) == 2


def published() -> subprocess.CompletedProcess:
    """What `make publish` does."""
    command = ["python", "-m", "t2i_feedback.tools.publish"]
    environment = warm.environment(os.environ | {"PYTHONPATH": str(REPOSITORY / "src")})
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_numbers_of_other_parameters_are_no_record_of_the_present_ones(untracked: Path) -> None:
    write_run(Path.cwd(), captions=4)
    type_in("  guidance: 2.0", "  guidance: 9.0")
    type_in("  epochs: ", "  epochs: 1")
    done = published()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "made with model.guidance: 2.0, and params.yaml has 9.0 (1 more keys differ)" in line
    assert line.endswith("run `dvc repro` first")
    assert not (untracked / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("caption: shortest", "caption: random", r"data\.caption"),
        ("max_rounds: ", "max_rounds: 1", r"stage1\.max_rounds"),
    ],
)
def test_what_the_measured_images_were_made_with_counts_too(root: Path, before: str, after: str, key: str) -> None:
    write_run(Path.cwd(), captions=4)
    type_in(before, after)
    with pytest.raises(UserError, match=key):
        tool.main()


def test_a_file_that_no_stage_left_so_is_no_evidence(untracked: Path) -> None:
    write_run(Path.cwd(), captions=4)
    file = paths.NUMBERS
    file.write_text(file.read_text().replace("0.", "1."))
    with pytest.raises(UserError, match=rf"{file} is not as dvc\.lock has it; run `dvc repro` first"):
        tool.main()
    assert not (untracked / "mlflow.db").exists()


@pytest.mark.parametrize(("missing", "file"), [("finetune", paths.ADAPTER), ("report", paths.NUMBERS)])
def test_what_dvc_lock_does_not_know_is_not_published(untracked: Path, missing: str, file: Path | str) -> None:
    write_run(Path.cwd(), captions=4)
    write_lock({name: entry for name, entry in STAGES.items() if name != missing})
    with pytest.raises(UserError, match=str(file)):
        tool.main()
    Path("dvc.lock").unlink()
    with pytest.raises(UserError, match=r"metrics/numbers\.json \(and 1 more\) is not as dvc\.lock has it"):
        tool.main()
    Path("dvc.lock").write_text("stages: {")
    with pytest.raises(UserError, match=r"dvc\.lock is not YAML"):
        tool.main()
    assert not (untracked / "mlflow.db").exists()


def test_a_stage_that_dvc_yaml_has_no_more_does_not_count(root: Path) -> None:
    """DVC keeps its entry in dvc.lock, with parameters that nobody reads."""
    write_run(Path.cwd(), captions=4)
    write_lock({"generate_raw": Stage(("model",), (paths.arm("raw"),)), **STAGES})
    locked = json.loads(json.dumps(load_yaml(paths.LOCK)))
    locked["stages"]["generate_raw"]["params"]["params.yaml"]["model"]["steps"] = 7
    dump_yaml(paths.LOCK, locked)
    publish.check()


def test_numbers_that_dvc_writes_otherwise_are_the_same(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    type_in("  guidance: 2.0", "  guidance: 2e0")
    type_in("safety_checker: off", "safety_checker: 'off'")
    publish.check()


def test_the_papers_tables_are_no_numbers_of_this_run(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    (paths.METRICS / "table1.json").write_text('{"rows": {"fid": 1.0}}')
    publish.check()
    assert not any("table1" in name for name in publish.metrics())


def test_the_report_publishes_before_dvc_has_its_entry(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While `dvc repro` runs it: dvc.lock has the present entries of all stages but the one that runs."""
    write_run(Path.cwd(), captions=4)
    report.main()
    write_lock(STAGES | {"report": Stage(("seed", "report"), (paths.NUMBERS, paths.REPORT))})
    type_in("  grid: ", "  grid: 1")
    report.main()
    assert len(tracked.parents()) == 2
    with pytest.raises(UserError, match=r"report\.grid"):
        tool.main()
    type_in("  guidance: 2.0", "  guidance: 9.0")
    capsys.readouterr()
    report.main()  # alone, as `dvc repro -s report` runs it
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: nothing is published to MLflow: ") and "model.guidance: 2.0" in line
    assert len(tracked.parents()) == 2


def test_an_outage_is_one_warning_and_soon_over(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow.tracking  # noqa: F401  (its import is not what is timed)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.UNREACHABLE)
    write_run(Path.cwd(), captions=4)
    started = time.monotonic()
    publish.publish()
    with stage_run("finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert time.monotonic() - started < 30
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one per use
    assert all("publish again with `make publish`" in line for line in lines)


@pytest.mark.parametrize(("variable", "value"), [("T2I_NO_TRACKING", "1"), ("RANK", "1")])
def test_tracking_can_be_off(untracked: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with stage_run("finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert publish.publish() is False
    assert not (untracked / "mlflow.db").exists()
    assert not (paths.cache() / "mlflow.lock").exists()
