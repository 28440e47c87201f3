"""DVC's half-written record of readers and writers is removed, and nothing that a living process needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools import unlock

pytestmark = pytest.mark.slow  # needs other processes

HALF = '{"/data/arms": {"write": {"pid": 12, "cm'


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    record = tmp_path / ".dvc/tmp/rwlock"
    record.parent.mkdir(parents=True)
    return record


@pytest.mark.parametrize("content", [HALF, "", "[]", "null", "\x00" * 40])
def test_half_a_record_is_removed_and_told(record: Path, content: str, capsys) -> None:
    record.write_text(content)
    unlock.main()
    assert not record.exists()
    assert "left half-written" in capsys.readouterr().out


def test_a_whole_record_is_dvcs_own_business(record: Path, capsys) -> None:
    record.write_text(json.dumps({"/data/arms": {"write": {"pid": 999999, "cmd": "dvc repro"}}}))
    unlock.main()
    assert record.exists()
    unlock.main()
    assert capsys.readouterr().out == ""


def test_nothing_is_removed_while_dvc_is_at_work_here(record: Path, tmp_path: Path) -> None:
    record.write_text(HALF)
    program = tmp_path / "dvc"
    program.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, cwd=tmp_path) as working:
        assert working.stdout is not None
        working.stdout.readline()
        try:
            with pytest.raises(UserError, match=rf"DVC is at work here .process {working.pid}"):
                unlock.main()
        finally:
            working.kill()
    assert record.exists()
    unlock.main()
    assert not record.exists()
