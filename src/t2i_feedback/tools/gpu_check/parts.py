"""The parts, and how one is run: in a process of its own, so that its memory and its end are its own."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from t2i_feedback.foundation import ending
from t2i_feedback.tools.gpu_check.results import BEGUN, ENDED, Result, add
from t2i_feedback.tools.gpu_check.tiny import TINY

DTYPES = ("float16", "bfloat16")
# Part -> its tasks, each a process.
PARTS = {name: [f"{name} {dtype}" for dtype in DTYPES] for name in TINY} | {"llava": ["llava"], "nccl": ["nccl"]}
WORK = "t2i_feedback.tools.gpu_check.working"
GRACE = 10.0  # seconds that a task has to end when it is told to


def tasks(chosen: Sequence[str]) -> list[str]:
    """What these parts consist of."""
    return [task for name in PARTS if name in chosen for task in PARTS[name]]


def run(task: str, device: str, end: float) -> None:
    """Run it to its end, or until the time (monotonic) is `end`. Its lines are written whatever becomes of it."""
    # On the CPU all are forked from one that has imported everything. Imports look for a GPU, and what has looked for
    # one and found it cannot be forked: there each begins anew.
    context: Any = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
    if device != "cuda":
        context.set_forkserver_preload([WORK, "peft", "torch._inductor.compile_fx"])
    add(Result(task=task, device=device, phase=BEGUN))
    process = context.Process(target=_work, args=(task, device))
    process.start()
    given = max(0.0, end - time.monotonic())
    with ending.unwound():
        try:
            process.join(given)
            late = process.is_alive()
        finally:
            _stop(process)
    problem = None
    if late:
        problem = f"was killed midway: it was not done in the {given:.0f} seconds that were left"
    elif process.exitcode and process.exitcode < 0:
        problem = f"was killed midway by {signal.Signals(-process.exitcode).name}"
    elif process.exitcode:
        problem = f"ended with status {process.exitcode}"
    add(Result(task=task, device=device, phase=ENDED, problem=problem))


def _work(task: str, device: str) -> None:
    from t2i_feedback.tools.gpu_check import working

    working.work(task, device)


def _stop(process: BaseProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.is_alive() or process.pid is None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it has not come to be a group of its own
            os.kill(process.pid, number)
        process.join(GRACE)
