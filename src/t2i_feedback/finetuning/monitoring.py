"""What is logged of an epoch to tell learning from collapse: the distance to the base model, and diversity."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Drawn
from t2i_feedback.foundation import distributed

KL_TRANSITIONS = 64  # a sample of an epoch's transitions, of all processes together


@torch.no_grad()
def kl_to_base(
    replay: Replay, drawn: Drawn, steps: torch.Tensor, generator: torch.Generator, train_batch_size: int
) -> float:
    """KL(policy || base) per latent dimension: the mean of a random sample of transitions at `steps`, the trained ones.

    They are replayed as many at a time as an update replays, so that it has the memory. The mean is over all
    processes, each of which samples its own images.
    """
    some = torch.randperm(len(drawn.prompt_index) * len(steps), generator=generator)
    some = some[: math.ceil(KL_TRANSITIONS / distributed.world_size())]
    image, step = some // len(steps), steps[some % len(steps)]
    pieces = zip(image.split(train_batch_size), step.split(train_batch_size), strict=True)
    found = torch.cat([replay.kl(drawn, *piece, replay.clean(drawn, *piece)[1]) for piece in pieces])
    total = distributed.all_reduce(torch.tensor([float(found.sum()), float(len(found))], dtype=torch.float64))
    return float(total[0] / total[1])


def diversity(images: list[Image.Image], prompts: Sequence[str]) -> float:
    """Mean root-mean-square pixel difference (0..255) of images of the same prompt; falls when a model collapses."""
    groups: dict[str, list[np.ndarray]] = {}
    for image, prompt in zip(images, prompts, strict=True):
        groups.setdefault(prompt, []).append(np.asarray(image, dtype=np.float32))
    distances = [
        math.sqrt(float(np.square(a - b).mean()))
        for group in groups.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
    ]
    return fmean(distances) if distances else 0.0
