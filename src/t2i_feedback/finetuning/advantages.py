"""From rewards to advantages: how much better an image is than what its prompt usually gets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SMALLEST_SPREAD = 1e-4  # in units of the reward; a spread below it is no signal and is not blown up


@dataclass(frozen=True)
class Advantages:
    values: torch.Tensor  # [N] float32, times the image's weight; NaN where there is no score
    dead_groups: float  # share of prompts whose rewards are all equal: they teach nothing

    @property
    def valid(self) -> torch.Tensor:
        """[N] bool: the images that have a score and are trained on."""
        return ~self.values.isnan()


def advantages(
    rewards: torch.Tensor,
    prompts: Sequence[str],
    *,
    per_prompt: bool,
    clip: float,
    weights: torch.Tensor | None = None,
) -> Advantages:
    """Normalise rewards [N] float64, NaN where there is none, each counting `weights` [N] > 0 (by default 1).

    Rewards are centred on the mean of their prompt's group (or of the batch) and scaled by the standard deviation of
    all centred rewards, so that a prompt whose rewards hardly differ is not blown up to the weight of one whose do.
    Groups are keyed by the prompt's full text.
    """
    valid = ~rewards.isnan()
    weight = (torch.ones_like(rewards) if weights is None else weights).where(valid, 0.0)
    keys = list(prompts) if per_prompt else [""] * len(rewards)
    centred = torch.zeros_like(rewards)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        if valid[index]:
            members.setdefault(key, []).append(index)
    dead = 0
    for indices in members.values():
        group, heavy = rewards[indices], weight[indices]
        centred[indices] = group - (group * heavy).sum() / heavy.sum()
        dead += bool((group == group[0]).all())
    spread = ((centred.square() * weight).sum() / weight.sum()).sqrt() if valid.any() else torch.tensor(0.0)
    values = (centred / spread.clamp(min=SMALLEST_SPREAD)).clamp(-clip, clip) * weight
    return Advantages(values.float().where(valid, torch.nan), dead / max(1, len(members)))
