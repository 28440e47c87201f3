"""Seeds and generators. Every random draw has a seed of its own, made of the run's seed and of what the draw is for.

So no draw depends on what was drawn before it: not on batches, processes, or where an interrupted run was taken up.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def noise_seed(seed: int, *labels: int | str) -> int:
    """A 63-bit seed from the run's seed and the labels of the draw, such as an image's caption id and round."""
    text = ":".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: int | str) -> "torch.Generator":
    """A generator on the CPU, seeded with `noise_seed`."""
    return generators([noise_seed(seed, *labels)])[0]


def generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """One generator per seed, on the CPU, whose numbers are the same whatever device computes."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
