"""Seconds and peak memory of what is done, and a part's process: its phases one by one, each written as it ends."""

import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.tools.gpu_check.results import UNFIT, Figures, Phases, Result, add
from t2i_feedback.tools.reckoning.memory import RESERVED

GIB = 2**30 / 1e9
UNITS = {"KiB": GIB / 2**20, "MiB": GIB / 2**10, "GiB": GIB}


@contextmanager
def watched(device: str) -> Iterator[Figures]:
    """What the block takes: `seconds`, and on a GPU `peak_gb` (10^9 bytes) of all that is allocated meanwhile."""
    found: Figures = {}
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield found
    if device == "cuda":
        torch.cuda.synchronize()
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    found["seconds"] = time.perf_counter() - start


@contextmanager
def said() -> Iterator[list[str]]:
    """The warnings of this package within the block."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("t2i_feedback")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


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


def work(name: str, device: str, stretches: Callable[[str], dict[str, Callable[[], Phases]]]) -> None:
    """A part in this process. A stretch that fails is told with its reason, and the next begins."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.setsid()  # so that a part can be ended with whatever it has started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    diffusers_logging.set_verbosity_error()
    torch.manual_seed(0)
    if device == "cuda":
        add(Result(task=name, device=device, phase="card", figures=card()))
    reckoned: Figures = {}
    for stretch, begin in stretches(device).items():
        phase, problem = stretch, None
        try:
            for phase, figures in begin():
                reckoned = figures if phase == "reckoned" else reckoned
                add(Result(task=name, device=device, phase=phase, figures=figures))
        except torch.OutOfMemoryError as error:
            wanted: Any = max(reckoned.values(), default=None, key=float) if reckoned else None
            problem = lacking(error, card()["memory_gb"], wanted)  # type: ignore[arg-type]
        except UserError as error:
            problem = str(error)
        except Exception as error:  # of whatever kind: the page shall have it, and the other stretches
            traceback.print_exc(file=sys.stderr)
            problem = f"{type(error).__name__}: {first_line(error)}"
        if problem:
            add(Result(task=name, device=device, phase=f"{stretch} after {phase}", problem=problem))
        if device == "cuda":
            torch.cuda.empty_cache()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)
