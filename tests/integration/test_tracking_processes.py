"""Stages in processes of their own that stream to a real MLflow: they make the same, and who dies is noticed."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_experiment
import tracked
import warm

from t2i_feedback.foundation import paths
from t2i_feedback.tracking.runs import parent_run
from t2i_feedback.tracking.streaming import stage_run
from t2i_feedback.tracking.under_way import end_dead_runs

pytestmark = pytest.mark.slow  # needs MLflow and other processes

REPOSITORY = Path(__file__).parents[2]
EPOCHS = 6
STARTED = """
import time
from t2i_feedback.tracking.streaming import stage_run
with stage_run("finetune") as run:
    run.log(1, {"reward_mean": 1.0})
    print("begun", flush=True)
    time.sleep(60)
"""


def environment(root: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "T2I_", "MLFLOW_"))}
    own = {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", "DVC_ROOT": str(root)}
    return warm.environment(kept | own | more)


def start(folder: Path, *command: str, **more: str) -> subprocess.Popen:
    given = environment(more.pop("root", folder), **more)
    return subprocess.Popen(["python", *command], cwd=folder, env=given, stdout=subprocess.PIPE, text=True)


FINETUNE = ("-m", "t2i_feedback.stages.finetune")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment.prepare(tmp_path_factory.mktemp("prepared"), epochs=EPOCHS)


def copied(prepared: Path, folder: Path) -> Path:
    shutil.copytree(prepared, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def untracked(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where fine-tuning has run without tracking."""
    folder = copied(prepared, tmp_path_factory.mktemp("untracked") / "run")
    assert start(folder, *FINETUNE, T2I_NO_TRACKING="1").wait() == 0
    assert not (folder / "mlflow.db").exists()
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, in which fine-tuning can run."""
    for variable in ("MLFLOW_TRACKING_URI", "T2I_NO_TRACKING", "DVC_EXP_NAME", "RANK", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(copied(prepared, tmp_path / "run"))
    return Path.cwd()


def made(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / paths.ADAPTER).iterdir()}


def streamed() -> None:
    """The child run has every epoch once, and images at the start, halfway and at the end."""
    child = tracked.children()["finetune"]
    assert {run.info.status for run in tracked.all_runs()} == {"FINISHED"}
    rewards = tracked.client().get_metric_history(child.info.run_id, "reward_mean")
    assert [point.step for point in rewards] == list(range(1, EPOCHS + 1))
    run = parent_run().child("finetune")
    assert sorted(step for _, step in run.images()) == sorted([0, EPOCHS // 2, EPOCHS] * 3)
    assert len({key for key, _ in run.images()}) == 3
    assert len(tracked.client().list_artifacts(run.run_id, "images")) == 2 * 9  # each once, and its smaller copy
    (model,) = child.outputs.model_outputs
    assert tracked.client().get_logged_model(model.model_id).status == "READY"
    assert list((paths.cache() / "mlflow").iterdir()) == []


def test_the_adapter_has_the_same_bytes_with_and_without_tracking(untracked: Path, place: Path) -> None:
    assert start(place, *FINETUNE).wait() == 0
    assert made(place) == made(untracked)
    streamed()


def test_sigterm_ends_the_runs_as_killed_and_the_same_command_takes_them_up(untracked: Path, place: Path) -> None:
    process = start(place, *FINETUNE)
    while process.poll() is None and not list(place.glob(".cache/partial/*/checkpoint-00002")):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM, "it dies as it does without tracking"
    assert {run.info.status for run in tracked.all_runs()} == {"KILLED"}
    assert start(place, *FINETUNE).wait() == 0
    assert made(place) == made(untracked)
    streamed()


def test_what_dies_without_a_word_is_ended_by_the_next_one_that_of_a_temporary_experiment_too(
    place: Path, tmp_path: Path
) -> None:
    """A temporary experiment runs in a folder that goes away, under a name of its own."""
    temporary = copied(place, tmp_path / "temporary")
    for folder, name in ((place, ""), (temporary, "calm-leg")):
        process = start(folder, "-c", STARTED, root=place, DVC_EXP_NAME=name)
        assert process.stdout and process.stdout.readline() == "begun\n"
        process.kill()
        process.wait()
    shutil.rmtree(temporary)
    assert sorted(run.info.status for run in tracked.all_runs()) == ["KILLED"] * 2 + ["RUNNING"] * 2
    end_dead_runs()
    assert [run.info.status for run in tracked.all_runs()] == ["KILLED"] * 4
    assert "calm-leg" in {run.info.run_name for run in tracked.parents()}


def test_a_process_that_lives_is_left_alone(place: Path) -> None:
    process = start(place, "-c", STARTED)
    assert process.stdout and process.stdout.readline() == "begun\n"
    with stage_run("another"):
        pass
    assert tracked.children()["finetune"].info.status == "RUNNING"
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert tracked.children()["finetune"].info.status == "KILLED"
