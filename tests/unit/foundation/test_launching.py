"""Who is one of several processes: whoever a launcher has started, and nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_feedback.foundation import distributed

pytestmark = pytest.mark.slow  # needs other processes

PROGRAM = """
import os, sys
from t2i_feedback.foundation import distributed, running
def main():
    print(distributed.rank(), distributed.world_size(), "RANK" in os.environ)
running.run(main)
"""
CLUSTERS = [
    {"RANK": "0", "WORLD_SIZE": "2"},
    {"RANK": "1"},
    {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "4", "GROUP_RANK": "2"},
]


def run(**variables: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in distributed.OF_LAUNCHERS}
    environment = clean | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("variables", CLUSTERS)
def test_a_clusters_variables_start_no_wait_and_are_told_in_one_line(variables: dict[str, str]) -> None:
    done = run(**variables)
    assert (done.returncode, done.stdout) == (0, "0 1 False\n")
    (line,) = done.stderr.splitlines()
    assert "are ignored: no launcher has started this process" in line
    assert all(name in line for name in variables)


def test_without_them_nothing_is_said() -> None:
    done = run()
    assert (done.stdout, done.stderr) == ("0 1 False\n", "")


@pytest.mark.parametrize("mark", ["T2I_LAUNCH", "TORCHELASTIC_RUN_ID"])
def test_a_launchers_mark_makes_them_count(mark: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    monkeypatch.setenv(mark, str(tmp_path))
    assert (distributed.rank(), distributed.world_size()) == (1, 2)
