"""A part's own process: its stretches one by one, each phase written as it ends."""

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import parent_process

import torch
from diffusers.utils import logging

from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.tools.gpu_check import corrections, mllms, nccl
from t2i_feedback.tools.gpu_check.images import Bench, free
from t2i_feedback.tools.gpu_check.results import UNFIT, Figures, Phases, Result, add, attempts, read
from t2i_feedback.tools.reckoning.memory import RESERVED

GIB = 2**30 / 1e9
UNITS = {"KiB": GIB / 2**20, "MiB": GIB / 2**10, "GiB": GIB}


def card() -> Figures:
    """The GPU and what drives it."""
    about = torch.cuda.get_device_properties(0)
    return {
        "name": about.name,
        "memory_gb": about.total_memory / 1e9,
        "capability": f"{about.major}.{about.minor}",
        "count": float(torch.cuda.device_count()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }


def lacking(error: torch.OutOfMemoryError, total: float, wanted: float | None) -> str:
    """That something does not fit into `total` GB, and how much is lacking: of what is reckoned, or was asked for."""
    if wanted is not None and wanted + RESERVED > total:
        more = f"{wanted + RESERVED - total:.1f} GB: {wanted:.1f} are reckoned, and {RESERVED:g} for CUDA"
    else:
        asked = re.search(r"allocate ([\d.]+) ([KMG]iB).*?of which ([\d.]+) ([KMG]iB) is free", str(error), re.DOTALL)
        size, free = (float(asked[n]) * UNITS[asked[n + 1]] for n in (1, 3)) if asked else (0.0, 0.0)
        more = f"at least {size - free:.2f} GB" if asked else f"memory: {first_line(error)}"
    return f"{UNFIT} into the {total:.1f} GB of this card; it lacks {more}"


def stretches(task: str, device: str) -> dict[str, Callable[[], Phases]]:
    """What a task does, piece by piece."""
    if task == "llava":
        return {"llava": lambda: mllms.asked(device)}
    if task == "nccl":
        return {"nccl": lambda: nccl.exchange(device)}
    bench = Bench.of(task, device)
    return {one.__name__: one for one in (bench.reckoned, bench.fine_tuning, bench.drawing, bench.profile)}


def work(task: str, device: str) -> None:
    """Do it in this process. A stretch that fails is told with its reason, and the next begins."""
    apart()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    if device == "cuda":
        add(Result(task=task, device=device, phase="card", figures=card()))
    reckoned: Figures = {}
    for stretch, begin in stretches(task, device).items():
        phase, problem = stretch, None
        try:
            for phase, figures in begin():
                reckoned = figures if phase == "reckoned" else reckoned
                add(Result(task=task, device=device, phase=phase, figures=figures))
        except torch.OutOfMemoryError as error:
            problem = lacking(error, float(card()["memory_gb"]), max(map(float, reckoned.values()), default=None))
        except UserError as error:
            problem = str(error)
        except Exception as error:  # of whatever kind: the page shall have it, and the other stretches
            traceback.print_exc(file=sys.stderr)
            problem = f"{type(error).__name__}: {first_line(error)}"
        if problem:
            add(Result(task=task, device=device, phase=f"{stretch} after {phase}", problem=problem))
        free(device)
    attempt = attempts(read(), device)[task]
    if attempt.card and task != "nccl":
        gpu = corrections.key_of(*attempt.card)
        known = corrections.estimated(task, gpu)
        lines = tuple(corrections.corrections(attempt, gpu, attempt.card[0]))
        figures = {} if known is None else {"estimated": known}
        add(Result(task=task, device=device, phase="estimates", figures=figures, corrections=lines))


def apart() -> None:
    """Lead what this process starts, so that all of it can be ended at once, and end with the one that began it."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)
