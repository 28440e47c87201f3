"""From rewards to advantages: how much better a picture is than what its prompt usually gets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SMALLEST_SPREAD = 1e-4  # in units of the reward; a spread below it is no signal and is not blown up


@dataclass(frozen=True)
class Advantages:
    values: torch.Tensor  # [N] float32, times the picture's weight; 0 where masked
    valid: torch.Tensor  # [N] bool; False where there is no score, or one of no weight
    dead_groups: float  # share of prompts whose valid rewards are all equal: they teach nothing


def advantages(
    rewards: Sequence[float | None],
    prompts: Sequence[str],
    *,
    per_prompt: bool,
    clip: float,
    weights: Sequence[float] | None = None,
) -> Advantages:
    """Normalise rewards [N], `None` where there is none, each counting `weights` [N] (by default 1).

    Rewards are centred on the mean of their prompt's group (or of the batch) and scaled by the standard deviation of
    all centred rewards, so that a prompt whose rewards hardly differ is not blown up to the weight of one whose do.
    Groups are keyed by the prompt's full text.
    """
    raw = torch.tensor([0.0 if reward is None else float(reward) for reward in rewards], dtype=torch.float64)
    weight = torch.ones_like(raw) if weights is None else torch.tensor(weights, dtype=torch.float64)
    weight = weight * torch.tensor([reward is not None for reward in rewards])
    valid = weight > 0
    keys = list(prompts) if per_prompt else [""] * len(raw)
    centred = torch.zeros_like(raw)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if valid[index]:
            members.setdefault(key, []).append(index)
    dead = 0
    for indices in members.values():
        group, heavy = raw[indices], weight[indices]
        centred[indices] = group - (group * heavy).sum() / heavy.sum()
        dead += bool((group == group[0]).all())
    spread = ((centred.square() * weight).sum() / weight.sum()).sqrt() if valid.any() else torch.tensor(0.0)
    values = (centred / spread.clamp(min=SMALLEST_SPREAD)).clamp(-clip, clip) * weight
    return Advantages(values.float(), valid, dead / max(1, len(members)))
