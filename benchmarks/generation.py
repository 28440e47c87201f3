"""Images per second of our drawing against diffusers' own pipeline, called per batch and per prompt.

    make bench                              # among the others
    python benchmarks/generation.py         # from the repository's root, a few minutes

The shipped model draws the same images from the same noise in four ways, in turns, the fastest of REPEATS each; a
busy machine makes all times longer. The images must be equal, else the program stops. Speed is not asserted: targets
stand beside the figures, which are also written to benchmarks/generation.json.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from t2i_feedback import params
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import PromptRow
from t2i_feedback.foundation.seeds import generators, noise_seed
from t2i_feedback.image_models import drawing
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.image_models.section import Model

RESULT = Path("benchmarks/generation.json")
REPEATS = 3  # the fastest counts: other processes only ever slow a run down
Images = list[Image.Image]


def main() -> None:
    p = params.load()
    model = p.model
    count = model.batch_size
    rng = random.Random(0)
    prompts = [caption(sample_scene(rng), rng, "terse")[0] for _ in range(count)]
    rows = [PromptRow(caption_id=i, round=1, prompt=text, status="valid") for i, text in enumerate(prompts)]
    seeds = [noise_seed(p.seed, row.caption_id, row.round) for row in rows]
    setting = {"guidance_scale": model.guidance, "eta": model.eta, "height": model.height, "width": model.width}

    ours, theirs = load_image_model(model), plain(model)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {count} images, {model.steps} steps", flush=True)

    def by_diffusers(some: list[str], noise: list[int]) -> Images:
        return theirs(some, generator=generators(noise), num_inference_steps=model.steps, **setting).images

    def per_batch() -> Images:
        return by_diffusers(prompts, seeds)

    def per_prompt() -> Images:
        return [by_diffusers([text], [seed])[0] for text, seed in zip(prompts, seeds, strict=True)]

    def draw() -> Images:
        return ours.draw(prompts, seeds)

    def draw_gallery() -> Images:
        with tempfile.TemporaryDirectory() as folder:
            drawing.draw_missing(lambda: ours, rows, Path(folder), model=model, seed=p.seed, title="gallery")
            return [open_rgb(Path(folder) / drawing.image_name(row.caption_id, 1)) for row in rows]

    ways: dict[str, Callable[[], Images]] = {
        "ours": draw,
        "ours, with PNG files": draw_gallery,
        "diffusers per batch": per_batch,
        "diffusers per prompt": per_prompt,
    }
    seconds = in_turns(ways)
    rates = {name: count / least for name, least in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:34s}{rate:8.2f} images a second")
    figures = {f"{name}, images a second": rate for name, rate in rates.items()}
    for other, target in (("diffusers per batch", 1), ("diffusers per prompt", 2)):
        ratio = rates["ours"] / rates[other]
        figures[f"ours against {other}"] = ratio
        verdict = "met" if ratio >= target else "MISSED"
        print(f"{f'ours against {other}':34s}{ratio:8.2f} times (target {target:g}, {verdict})")
    RESULT.write_text(json.dumps(figures | {"cores": os.cpu_count()}, indent=2) + "\n")


def plain(model: Model) -> StableDiffusionPipeline:
    """What a user of diffusers writes, with the checkpoint's own scheduler."""
    pipe = StableDiffusionPipeline.from_pretrained(
        model.name, dtype=getattr(torch, model.dtype), safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def in_turns(ways: dict[str, Callable[[], Images]]) -> dict[str, float]:
    """The least seconds of each. Exits if two ways do not draw the same."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first: Images = []
    for _ in range(REPEATS):
        for name, way in ways.items():
            started = time.perf_counter()
            found = way()
            seconds[name].append(time.perf_counter() - started)
            first = first or found
            if apart(first, found) > 1:
                sys.exit(f"{name} draws other images: {apart(first, found)} levels apart")
    return {name: min(times) for name, times in seconds.items()}


def apart(some: Images, others: Images) -> int:
    """The largest difference of a channel, 0 to 255."""
    pairs = zip(some, others, strict=True)
    return max(int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()) for a, b in pairs)


if __name__ == "__main__":
    main()
