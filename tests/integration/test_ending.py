"""A program that is ended takes with it what it runs in a session of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import workplaces
from PIL import Image

from t2i_feedback.foundation import paths
from t2i_feedback.rewards import human

SECONDS = 60.0
PREFERENCE = "scenes at night"


def runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_training_of_a_page_ends_with_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = workplaces.ours()
    parameters["finetune"] |= {"user": "file", "preference": PREFERENCE}
    workplaces.enter(tmp_path, monkeypatch, parameters)
    human.sheet_of(PREFERENCE, paths.feedback()).enter([Image.new("RGB", (8, 8))], ["a house"])
    dvc = tmp_path / "bin/dvc"
    dvc.parent.mkdir()
    dvc.write_text(f"#!{sys.executable} -S\nimport os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n")
    dvc.chmod(0o755)
    page = subprocess.Popen(
        [sys.executable, "-m", "t2i_feedback.tools.feedback"],
        env=os.environ | {"PATH": f"{dvc.parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _end_while_it_trains(page, number)
    finally:
        page.kill()
        page.wait()


def _end_while_it_trains(page: subprocess.Popen[str], number: signal.Signals) -> None:
    address = next(filter(None, (re.search(r"(http://\S+)/(\?token=\S+)", line) for line in page.stdout)), None)
    assert address, f"it ended with {page.wait()}"
    with httpx.Client(base_url=address[1], follow_redirects=True) as client:
        client.get(f"/{address[2]}").raise_for_status()
        client.post("/training", headers={"origin": address[1]}).raise_for_status()
    log, until = paths.cache() / "feedback.log", time.monotonic() + SECONDS
    while not (found := re.search(r"pid (\d+)", log.read_text() if log.exists() else "")):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert runs(int(found[1]))
    page.send_signal(number)
    page.wait(SECONDS)
    assert not runs(int(found[1]))
