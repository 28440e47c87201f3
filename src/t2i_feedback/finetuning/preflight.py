"""Before any question is asked: does training see the numbers that sampling made? Then every importance ratio is 1."""

import math

import torch

from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.finetuning.update import minibatches
from t2i_feedback.foundation.errors import UserError

TRANSITIONS = 64  # that are replayed: at least so many, in whole images
SHARE = 0.1  # of the clip range: how far the ratio may be from 1 before anything was learnt


def limit(clip_range: float) -> float:
    """The largest |ratio - 1| that passes."""
    return SHARE * clip_range


def check(replay: Replay, trajectories: Trajectories, train_batch_size: int, clip_range: float) -> float:
    """Replay trajectories that the present policy has just drawn. Returns the largest |ratio - 1|.

    Raises UserError if it is too large, or a log-probability is not finite. Graphs are built as in an update, since
    gradient checkpointing changes what is computed.
    """
    if not trajectories.log_probs.isfinite().all():
        raise UserError(
            "preflight: a log-probability of the rollout is not finite; lower model.guidance or use float32"
        )
    count, steps = trajectories.log_probs.shape
    images = torch.arange(min(count, math.ceil(TRANSITIONS / steps)))
    worst = 0.0
    with replay.adapter.merged():
        for image, step in minibatches(images, torch.arange(steps), train_batch_size):
            replayed = replay.log_prob(trajectories, image, step)[0].detach()
            ratio = torch.exp(replayed - trajectories.log_probs[image, step].to(replayed.device))
            worst = max(worst, float((ratio - 1).abs().max()))
    if not worst < limit(clip_range):
        raise UserError(
            f"preflight: the importance ratio before any update is off by {worst:.1e}, more than "
            f"{limit(clip_range):.1e} = {SHARE} * finetune.clip_range: sampling and training disagree. Use model.dtype "
            "float32, or raise finetune.clip_range"
        )
    return worst
