"""What a unit of the default run's work takes here: the figures that estimates/throughputs.yaml has of `cpu`.

    PYTHONPATH=src python benchmarks/units.py      # after `dvc repro data`

Rates are per second of processor time, on one thread, so that what else the machine does leaves them as they are; a
second core adds what PyTorch makes of it. Nothing is asserted.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2i_feedback import mllm, params
from t2i_feedback.evaluation import extractors, fidelity
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow, read_rows
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.image_models.base import Policy
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm
from t2i_feedback.tools.estimate import pace

IMAGES = 32
RESAMPLED, RESAMPLES = 1024, 20
REPEATS = 3  # the fastest counts
IMPORTS = "import torch, diffusers, transformers, peft, scipy.stats"


def main() -> None:
    torch.set_num_threads(1)
    p = params.load()
    rows = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)[:IMAGES]
    files = [paths.DATASET / row.image for row in rows]
    print(f"probe: {pace.probe():.0f} passes per second")
    start = _seconds(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True), children=True)
    print(f"start: {start:.1f} s per stage", flush=True)
    drawing(p, [row.caption for row in rows])
    asking(p, files, [row.caption for row in rows])
    extractor = extractors.load(p.evaluate.extractor, "cpu")
    seconds = _seconds(lambda: extractors.extract(files, extractor, p.model.size))
    print(f"extractors.{p.evaluate.extractor}.images: {len(files) / seconds:.1f} per second")
    dimensions = extractors.extract(files, extractor, p.model.size).features.shape[1]
    print(f"extractors.{p.evaluate.extractor}.dimensions: {dimensions}", flush=True)
    resampling()


def drawing(p: params.Params, captions: list[str]) -> None:
    """Steps per second of whole drawings, and what a transition's forward and backward cost beside a forward."""
    m, config, seeds = p.model, p.finetune, list(range(len(captions)))
    model = load_image_model(m)
    seconds = _seconds(lambda: model.draw(captions, seeds))
    print(f"image_models.{m.name}.steps: {len(captions) * m.steps / seconds:.1f} per second", flush=True)
    model = load_image_model(m, training=True)
    model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, p.seed)
    count, kind = config.steps_of(m.steps), config.noise.kind
    policy = Policy.of(model, model.schedule(count, model.noises[0] if kind == "auto" else kind, config.noise.level))
    texts, steps = model.encode(captions), torch.arange(len(captions)) % count
    noise = model.fresh_noise(generators(seeds))

    def forward() -> torch.Tensor:
        return policy.mean(noise, steps, texts).square().mean()

    with model.adapter.merged():  # as the trainer does
        with torch.no_grad():
            once = _seconds(forward)
        trained = _seconds(lambda: forward().backward())
    print(f"image_models.{m.name}.update: {trained / once:.2f} forwards", flush=True)


def asking(p: params.Params, files: list[Path], captions: list[str]) -> None:
    images = [open_rgb(file) for file in files]
    again = count(time.time_ns() % 1_000_000_000)  # another sample each time: nothing is asked twice
    for name in dict.fromkeys((p.stage1.mllm, p.evaluate.judge)):
        with mllm.connect(name, p.mllms[name], paths.cache() / "units.sqlite") as model:
            scored = _seconds(partial(_score, model, images, p.finetune.preference, again))
            written = _seconds(partial(_enhance, model, captions, again))
        print(f"mllms.{name}.questions: {len(images) / scored:.1f} per second", flush=True)
        print(f"mllms.{name}.texts: {len(captions) / written:.1f} per second", flush=True)


def _score(model: Mllm, images: list[Image.Image], preference: str, again: Iterator[int]) -> None:
    roles.score_preference(model, images, preference, next(again))


def _enhance(model: Mllm, captions: list[str], again: Iterator[int]) -> None:
    roles.enhance(model, captions, seeds=[next(again)] * len(captions))


def resampling() -> None:
    features = np.random.default_rng(0).standard_normal((2, RESAMPLED, RESAMPLED)).astype(np.float32)
    frechet = fidelity.FrechetDistance(features[0], features[1])
    seconds = _seconds(lambda: frechet.resample(RESAMPLES, np.random.default_rng(0)))
    print(f"common.resample: {seconds / RESAMPLES:.4f} s")


def _seconds(call: Callable[[], object], children: bool = False) -> float:
    """Processor seconds of the fastest of REPEATS calls after one that warms up."""
    import resource

    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    found = []
    for _ in range(1 + REPEATS):
        before = resource.getrusage(who)
        call()
        after = resource.getrusage(who)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found[1:])


if __name__ == "__main__":
    main()
