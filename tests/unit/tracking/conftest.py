import shutil
from pathlib import Path

import pytest
import workplaces


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs: its forty migrations take longer than what a test does with it."""
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def root(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root whose name has a space, while the current directory is a temporary run's."""
    for variable in ("MLFLOW_TRACKING_URI", "T2I_NO_TRACKING", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    root, work = tmp_path / "my repository", tmp_path / "temporary"
    root.mkdir()
    work.mkdir()
    shutil.copyfile(migrated, root / migrated.name)
    monkeypatch.chdir(work)
    monkeypatch.setenv("DVC_ROOT", str(root))
    workplaces.furnish()
    return root


@pytest.fixture
def untracked(root: Path) -> Path:
    """The same, in which MLflow was never used."""
    (root / "mlflow.db").unlink()
    return root
