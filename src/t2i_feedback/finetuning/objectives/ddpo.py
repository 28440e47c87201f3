"""The clipped importance-sampled policy gradient (DDPO-IS with PPO's clipping)."""

import torch


def loss(
    log_prob: torch.Tensor, old_log_prob: torch.Tensor, advantage: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Schulman et al., *Proximal Policy Optimization* (2017), eq. 7, for transitions [B]; minimised, hence the sign."""
    ratio = torch.exp(log_prob - old_log_prob)
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.min(ratio * advantage, bounded * advantage).mean()
