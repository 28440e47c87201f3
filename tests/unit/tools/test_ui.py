import os
from pathlib import Path

import pytest

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools import ui


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The store that MLflow's UI is started on, in a repository whose name has a space."""
    (tmp_path / "my repository").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "my repository"))
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(variable, raising=False)
    started: list[str] = []
    monkeypatch.setattr(
        os,
        "execvpe",
        lambda _, words, environment: started.extend([*words[:2], environment["MLFLOW_BACKEND_STORE_URI"]]),
    )
    return started


def test_the_ui_shows_the_runs_that_stages_write(started: list[str], tmp_path: Path) -> None:
    ui.main()
    assert started == ["mlflow", "ui", f"sqlite:///{tmp_path}/my repository/mlflow.db"]


def test_no_password_stands_in_the_list_of_processes(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/runs")
    ui.main()
    assert started == ["mlflow", "ui", "postgresql://me:secret@host/runs"]


@pytest.mark.parametrize(
    ("given", "said"), [("http://me:secret@host:5000", "http://host:5000"), ("databricks", "databricks")]
)
def test_a_server_has_a_ui_of_its_own(
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    said: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    ui.main()
    assert capsys.readouterr().out == f"MLflow's server has its own UI: {said}\n"
    assert started == []


def test_a_plain_folder_is_refused_in_words(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        ui.main()
    assert started == []
