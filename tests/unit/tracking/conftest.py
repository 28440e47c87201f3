from pathlib import Path

import pytest
import workplaces


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root whose name has a space, while the current directory is a temporary run's."""
    for variable in ("MLFLOW_TRACKING_URI", "T2I_NO_TRACKING", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    root, work = tmp_path / "my repository", tmp_path / "temporary"
    root.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("DVC_ROOT", str(root))
    workplaces.furnish()
    return root
