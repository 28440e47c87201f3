"""What is said when DVC cannot say what is up to date, since somebody else works here."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.publish import check_up_to_date


@pytest.mark.slow
def test_a_run_under_way_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with Repo.init(no_scm=True) as repo:
        check_up_to_date("compared")
        with (
            repo.lock,
            pytest.raises(UserError, match="nothing is compared: a run or another DVC command is under"),
        ):
            check_up_to_date("compared")
