import os
import subprocess
from pathlib import Path

import pytest
import tracked
import warm
from made_up_run import REPOSITORY, write_run

from t2i_feedback.tracking import publish, store

pytestmark = pytest.mark.slow  # needs MLflow


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/mlflow.db", "sqlite:///{root}/runs/mlflow.db"),
        ("sqlite:////else/mlflow.db", "sqlite:////else/mlflow.db"),
        ("", "sqlite:///{root}/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
    ],
)
def test_a_relative_place_is_the_repositorys_also_in_a_temporary_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: str, means: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.uri() == means.format(root=root)


@pytest.mark.parametrize("given", ["mlruns", "./mlruns", "file:mlruns", "file:./mlruns"])
def test_a_relative_folder_is_the_repositorys_too(root: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.uri() == (root / "mlruns").as_uri()


def test_an_experiment_that_was_deleted_is_restored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    tracked.client().delete_experiment(tracked.client().get_experiment_by_name(store.EXPERIMENT).experiment_id)
    assert publish.publish()
    assert "had been deleted, and is restored" in capsys.readouterr().err
    assert len(tracked.parents()) == 1


def test_passwords_are_not_shown() -> None:
    assert store.shown("at http://me:secret@host:5000/x") == "at http://host:5000/x"


def test_parallel_first_use(untracked: Path) -> None:
    environment = warm.environment(os.environ | {"PYTHONPATH": str(REPOSITORY / "src")})
    command = ["python", "-m", "t2i_feedback.tracking.store"]
    started = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
