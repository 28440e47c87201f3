"""How busy evaluation keeps its extractor: share of the wall time in which it computes, and images per second.

    make bench            # or python benchmarks/evaluation.py

Images of SD 1.5's size are read from disk, measured for light and resized for the extractor, as `evaluate` does: with
threads that read ahead, and for comparison one after another. Nothing is asserted: the figures are printed, and written
to benchmarks/evaluation.json beside the machine's core count.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from t2i_feedback.evaluation import decoding, extractors
from t2i_feedback.foundation import photometry
from t2i_feedback.foundation.images import open_rgb

RESULT = Path("benchmarks/evaluation.json")
IMAGES = 48
REPEATS = 3
SIZES = ((64, 64), (512, 256))  # drawn -> evaluated; the default run's, and coco30k-256's


class Timed(nn.Module):
    """An extractor that adds up the seconds in which it computes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seconds = inner, 0.0

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        started = time.perf_counter()
        found = self.inner(pixels)
        self.seconds += time.perf_counter() - started
        return found


def one_by_one(items: Iterator, work: Callable) -> Iterator:
    return (work(item) for item in items)


def write_images(folder: Path, side: int) -> list[Path]:
    """Smooth noise, which takes as long to decode as an image."""
    rng = np.random.default_rng(0)
    files = [folder / f"{side}-{number:03d}.png" for number in range(IMAGES)]
    for file in files:
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(file)
    return files


def passes(files: list[Path], size: int, way: Callable) -> tuple[float, float]:
    """(busy share, images per second) of the quickest of REPEATS passes."""
    timed = Timed(extractors.load("efficientnet-lite0", "cpu"))
    extractors.ahead = way
    found = []
    for _ in range(REPEATS):
        timed.seconds, images = 0.0, decoding.ImageFiles(open_rgb)

        def look(file: Path, images: decoding.ImageFiles = images) -> Image.Image:
            image = images.open(file)
            photometry.measure(image)
            return image

        started = time.perf_counter()
        extractors.extract(files, timed, size, "squash_bicubic", look)
        seconds = time.perf_counter() - started
        found.append((seconds, timed.seconds / seconds))
    seconds, busy = min(found)
    return busy, len(files) / seconds


def main() -> None:
    figures: dict[str, float] = {}
    photometry.measure(Image.new("RGB", (64, 64)))  # scikit-image is loaded at the first call
    with tempfile.TemporaryDirectory() as folder:
        for drawn, size in SIZES:
            files = write_images(Path(folder), drawn)
            for name, way in (("one after another", one_by_one), ("read ahead", decoding.ahead)):
                busy, rate = passes(files, size, way)
                what = f"{drawn} -> {size}, {name}"
                print(f"{what:32s} {busy:5.0%} of the time in the extractor, {rate:6.1f} images/s", flush=True)
                figures |= {f"{what}: busy": round(busy, 3), f"{what}: images a second": round(rate, 1)}
    RESULT.write_text(json.dumps({"cores": os.cpu_count()} | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
