import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_run import REPOSITORY, write_run

from t2i_feedback import params
from t2i_feedback.foundation import paths
from t2i_feedback.tracking import publish, runs

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root whose name has a space, while the current directory is a temporary run's."""
    for variable in ("MLFLOW_TRACKING_URI", "T2I_NO_TRACKING", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    root, work = tmp_path / "my repository", tmp_path / "temporary"
    root.mkdir()
    work.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(work)
    return root


def default_params() -> params.Params:
    return params.load(REPOSITORY / "params.yaml")


def other_params() -> params.Params:
    p = default_params()
    return p.model_copy(update={"seed": p.seed + 1})


def client():
    from mlflow.tracking import MlflowClient

    return MlflowClient(runs.uri())


def all_runs() -> list:
    found = client().get_experiment_by_name(runs.EXPERIMENT)
    assert found
    return list(client().search_runs([found.experiment_id]))


# ------------------------------------------------------------------------------------------------ identity


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True)


def test_identity_follows_code_and_params_and_ignores_results(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("src", "metrics"):
        Path(name).mkdir()
    for name in ("src/a.py", "dvc.lock", "metrics/a.json", "README.md"):
        Path(name).write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    p = default_params()
    first = runs.identify(p)
    assert len(first.sha) == 40
    assert first.dirty == ""
    for name in ("dvc.lock", "metrics/a.json", "README.md"):
        Path(name).write_text("2\n")
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    assert runs.identify(p).key == first.key
    assert runs.identify(p).name == "bold-arm"
    assert runs.identify(other_params()).key != first.key
    Path("src/a.py").write_text("2\n")
    assert runs.identify(p).key != first.key


def test_identity_outside_of_a_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert runs.identify(default_params()).sha == "none"


def test_params_are_flat_short_and_only_of_mllms_in_use() -> None:
    p = default_params()
    long = p.finetune.model_copy(update={"preference": "x" * 7000})
    flat = runs.flatten(p.model_copy(update={"finetune": long}))
    assert flat["stage1.max_rounds"] == str(p.stage1.max_rounds)
    assert len(flat["finetune.preference"]) == runs.VALUE_LIMIT
    assert {key.split(".")[1] for key in flat if key.startswith("mllms.")} == {"postcards", "postcards-judge"}


def test_passwords_are_not_shown() -> None:
    assert runs.shown("at http://me:secret@host:5000/x") == "at http://host:5000/x"


# ------------------------------------------------------------------------------------------------ publishing


def test_publishing_twice_is_once_and_other_params_are_another_run(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    p = default_params()
    assert publish.publish(p)
    assert publish.publish(p)
    [run] = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["arms.raw.fid"] == pytest.approx(30.123)
    assert run.data.params["finetune.judge"] == "postcards"
    assert run.data.tags["templates"] == "postcards 0123456789ab"
    curve = client().get_metric_history(run.info.run_id, "finetune.curve.reward_mean")
    assert [point.step for point in curve] == list(range(1, 11))
    artifacts = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "models/lora/history.jsonl").exists()
    assert not (Path.cwd() / "mlartifacts").exists()
    assert not (Path.cwd() / "mlruns").exists()
    assert publish.publish(other_params())
    assert len(all_runs()) == 2


def test_publish_after_dvc_exp_run_finds_the_experiment_s_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    during = runs.parent_run(default_params())
    monkeypatch.delenv("DVC_EXP_NAME")
    assert runs.parent_run(default_params()).run_id == during.run_id
    monkeypatch.setenv("DVC_EXP_NAME", "calm-leg")
    assert runs.parent_run(default_params()).run_id != during.run_id


def test_a_stage_streams_into_one_child_however_often_it_starts(root: Path) -> None:
    p = default_params()

    def fail_after_one_epoch() -> None:
        with runs.stage_run(p, "finetune") as stream:
            stream.log(1, {"reward_mean": 4.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_one_epoch()
    assert {run.info.status for run in all_runs()} == {"RUNNING", "FAILED"}
    with runs.stage_run(p, "finetune") as stream:
        stream.log(2, {"reward_mean": 5.0})
    [child] = [run for run in all_runs() if runs.PARENT in run.data.tags]
    assert child.info.status == "FINISHED"
    assert child.data.tags[runs.PARENT] == runs.parent_run(p).run_id
    steps = client().get_metric_history(child.info.run_id, "reward_mean")
    assert [(point.step, point.value) for point in steps] == [(1, 4.0), (2, 5.0)]


def test_parallel_first_use(root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "t2i_feedback.tracking.runs"]
    started = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


# ------------------------------------------------------------------------------------------------ MLflow is down


def test_an_outage_is_one_warning_and_soon_over(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow.tracking  # noqa: F401  (its import is not what is timed)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    write_run(Path.cwd(), captions=4)
    started = time.monotonic()
    publish.main()
    with runs.stage_run(default_params(), "finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert time.monotonic() - started < 30
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one per use
    assert all("publish again with `make publish`" in line for line in lines)


def test_a_stream_that_breaks_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, step: int, numbers: dict[str, float]) -> None:
            raise OSError("gone")

    stream = runs.Stream(Broken())  # type: ignore[arg-type]
    stream.log(1, {})
    stream.log(2, {})
    stream.finish("FINISHED")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("variable", "value"), [("T2I_NO_TRACKING", "1"), ("RANK", "1")])
def test_tracking_can_be_off(root: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with runs.stage_run(default_params(), "finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert publish.publish(default_params()) is False
    assert not (root / "mlflow.db").exists()
    assert not paths.cache().exists()
