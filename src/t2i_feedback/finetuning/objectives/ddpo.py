"""The clipped importance-sampled policy gradient (DDPO-IS with PPO's clipping)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Loss:
    value: torch.Tensor  # scalar: mean over transitions
    ratio: torch.Tensor  # [B] importance ratios, detached
    clipped: torch.Tensor  # [B] bool: outside the clip range


def policy_loss(log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, clip_range: float) -> Loss:
    """Schulman et al., *Proximal Policy Optimization* (2017), eq. 7, for transitions [B]; minimised, hence the sign."""
    ratio = torch.exp(log_prob - old_log_prob)
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    value = -torch.min(ratio * advantage, bounded * advantage).mean()
    detached = ratio.detach()
    return Loss(value, detached, (detached - 1).abs() > clip_range)
