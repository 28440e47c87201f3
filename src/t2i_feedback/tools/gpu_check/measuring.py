"""Seconds and peak memory of what is done, and what is said meanwhile."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from t2i_feedback.tools.gpu_check.results import Figures


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
