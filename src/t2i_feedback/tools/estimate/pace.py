"""How fast this machine's processor is beside the one that the figures of `cpu` were measured on."""

import statistics
import time

from t2i_feedback.tools.estimate.figures import Throughputs

BATCH, CHANNELS, SIZE = 32, 64, 16  # as a middle block of the shipped denoiser
SECONDS, WARM_UP = 1.0, 0.1  # of measuring, and before


def probe() -> float:
    """Passes per second of a small convolution, as drawing is made of them, on one thread: the middle of a second.

    One, since two wait for each other wherever something else runs, far more than a whole stage does.
    """
    import torch

    before = torch.get_num_threads()
    passes: list[float] = []
    torch.set_num_threads(1)
    try:
        layer = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        images, begin = torch.ones(BATCH, CHANNELS, SIZE, SIZE), time.perf_counter()
        with torch.inference_mode():
            while not passes or time.perf_counter() < begin + WARM_UP + SECONDS:
                start = time.perf_counter()
                layer(images)
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
