"""How fast this machine's processor is beside the one that the figures of `cpu` were measured on."""

import statistics
import time

from t2i_feedback.tools.estimate.figures import Throughputs

SIZE = 512  # of the matrices; a pass takes some milliseconds, and none of them asks for memory
SECONDS, WARM_UP = 1.0, 0.1  # of measuring, and before


def probe() -> float:
    """Products of two matrices per second, as drawing is made of them, on one thread: the middle of a second.

    One, since two wait for each other wherever something else runs, far more than a whole stage does.
    """
    import torch

    before = torch.get_num_threads()
    passes: list[float] = []
    torch.set_num_threads(1)
    try:
        left, right, product = (torch.ones(SIZE, SIZE) for _ in range(3))
        begin = time.perf_counter()
        while not passes or time.perf_counter() < begin + WARM_UP + SECONDS:
            start = time.perf_counter()
            torch.mm(left, right, out=product)
            if start > begin + WARM_UP:
                passes.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 1 / statistics.median(passes)


def here(figures: Throughputs, gpu: str) -> float:
    """How many times as fast this processor is, now, as the one of the figures; 1 for a GPU."""
    reference = figures.gpus[gpu].probe if gpu in figures.gpus else None
    return probe() / reference.value if reference else 1.0


def at(figures: Throughputs, pace: float) -> Throughputs:
    """The figures with those of `cpu` for a processor that is `pace` times as fast."""
    if pace == 1:
        return figures
    found = figures.model_dump()
    found["gpus"]["cpu"]["start"]["value"] /= pace
    found["common"]["resample"]["value"] /= pace
    for one in (*found["image_models"].values(), *found["mllms"].values(), *found["extractors"].values()):
        for rates in one.values():
            if isinstance(rates, dict) and "cpu" in rates:
                rates["cpu"]["value"] *= pace
    return Throughputs.model_validate(found)
