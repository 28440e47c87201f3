"""How fast this machine's processor is beside the one that the figures of `cpu` were measured on."""

import os
import statistics
import time

from t2i_feedback.tools.estimate.figures import Throughputs

THREADS = 2  # what the figures are of; a machine with more is faster than is said here
BATCH, CHANNELS, SIZE = 32, 64, 16  # as a middle block of the shipped denoiser
PASSES, WARM_UP = 200, 20


def probe() -> float:
    """Passes per second of a small convolution, the middle of a second of them: the work that drawing is made of."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    try:
        layer = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        images, seconds = torch.ones(BATCH, CHANNELS, SIZE, SIZE), []
        with torch.inference_mode():
            for _ in range(WARM_UP + PASSES):
                start = time.perf_counter()
                layer(images)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 1 / statistics.median(seconds[WARM_UP:])


def here(figures: Throughputs, gpu: str) -> float:
    """How many times as fast this processor is, now, as the one of the figures; 1 for a GPU."""
    reference = figures.gpus[gpu].probe if gpu in figures.gpus else None
    return probe() / reference.value if reference else 1.0


def at(figures: Throughputs, pace: float) -> Throughputs:
    """The figures with those of `cpu` for a processor that is `pace` times as fast."""
    found = figures.model_dump()
    found["gpus"]["cpu"]["start"]["value"] /= pace
    found["common"]["resample"]["value"] /= pace
    for one in (*found["image_models"].values(), *found["mllms"].values(), *found["extractors"].values()):
        for rates in one.values():
            if isinstance(rates, dict) and "cpu" in rates:
                rates["cpu"]["value"] *= pace
    return Throughputs.model_validate(found)
