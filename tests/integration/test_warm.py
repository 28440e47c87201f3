"""The forked `python` of the tests behaves as the real one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import warm

pytestmark = [
    pytest.mark.slow,  # starts the server
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has warm processes"),
]
IS_WARM = "import sys; print('torch' in sys.modules, *sys.argv[1:])"


def run(*command: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    given = warm.environment(os.environ) | more
    return subprocess.run(command, env=given, cwd=folder, input="given", capture_output=True, text=True)


def test_code_a_module_and_a_script_get_their_arguments_and_start_with_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IS_WARM)
    assert run("python", "-c", IS_WARM, "a b").stdout == "True a b\n"
    assert run("python", "script.py", "a b", folder=tmp_path).stdout == "True a b\n"
    assert "usage: " in run("dvc", "--help").stdout


def test_what_is_read_at_import_is_read_by_a_real_process() -> None:
    assert run("python", "-c", IS_WARM, HF_HOME="/elsewhere").stdout == "False\n"
    assert run("python", "-c", IS_WARM, PYTHONHASHSEED="3").stdout == "False\n"


def test_nothing_of_ours_is_imported_before_and_the_callers_place_is_taken_over(tmp_path: Path) -> None:
    told = "import os, sys; print(os.getcwd(), os.environ['A'], sys.stdin.read(), 't2i_feedback' in sys.modules)"
    assert run("python", "-c", told, folder=tmp_path, A="b").stdout == f"{tmp_path} b given False\n"


def test_two_processes_draw_different_random_numbers() -> None:
    drawn = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert run("python", "-c", drawn).stdout != run("python", "-c", drawn).stdout


def test_status_and_traceback_are_the_callers() -> None:
    assert run("python", "-c", "raise SystemExit(7)").returncode == 7
    failed = run("python", "-c", "1 / 0")
    assert failed.returncode == 1 and failed.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it_and_what_it_started(number: signal.Signals) -> None:
    code = "import os, subprocess as s, time; s.Popen(['sleep', '60']); print(os.getpid(), flush=True); time.sleep(60)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["python", "-c", code], env=warm.environment(os.environ), **pipes) as one:
        assert one.stdout
        forked = psutil.Process(int(one.stdout.readline()))
        both = [forked, *forked.children()]
        one.send_signal(number)
    assert one.returncode == (1 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in both):
        assert time.monotonic() < deadline, "a process outlived its caller"
        time.sleep(0.02)
