"""The parts, and how one is run: in a process of its own, so that its memory and its end are its own."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess

from t2i_feedback.tools.gpu_check import images, measuring, mllms, nccl
from t2i_feedback.tools.gpu_check.results import BEGUN, ENDED, Phases, Result, add

Stretches = Callable[[str], dict[str, Callable[[], Phases]]]  # of a device
GRACE = 10.0  # seconds that a part has to end when it is told to


@dataclass(frozen=True)
class Task:
    name: str
    stretches: Stretches


PARTS: dict[str, list[Task]] = {
    **{
        name: [Task(f"{name} {dtype}", partial(images.stretches, name, dtype)) for dtype in images.DTYPES]
        for name in images.TINY
    },
    "llava": [Task("llava", mllms.stretches)],
    "nccl": [Task("nccl", nccl.stretches)],
}


def names() -> list[str]:
    return list(PARTS)


def tasks(chosen: Sequence[str]) -> list[Task]:
    """What these parts consist of."""
    return [task for name in PARTS if name in chosen for task in PARTS[name]]


def run(task: Task, device: str, end: float) -> None:
    """Run it to its end, or until the time (monotonic) is `end`. Its lines are written whatever becomes of it."""
    context = multiprocessing.get_context("forkserver")  # its processes are forked where nothing has seen a GPU
    context.set_forkserver_preload([__name__, "peft", "torch._dynamo"])
    add(Result(task=task.name, device=device, phase=BEGUN))
    process = context.Process(target=measuring.work, args=(task.name, device, task.stretches))
    process.start()
    given = end - time.monotonic()
    try:
        process.join(given)
        late = process.is_alive()
    finally:
        _stop(process)
    problem = None
    if late:
        problem = f"was killed midway: {given:.0f} seconds were left to it, and it was not done"
    elif process.exitcode and process.exitcode < 0:
        problem = f"was killed midway by {signal.Signals(-process.exitcode).name}"
    elif process.exitcode:
        problem = f"ended with status {process.exitcode}"
    add(Result(task=task.name, device=device, phase=ENDED, problem=problem))


def _stop(process: BaseProcess) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not process.is_alive() or process.pid is None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # it has not come to be a group of its own
            os.kill(process.pid, number)
        process.join(GRACE)
