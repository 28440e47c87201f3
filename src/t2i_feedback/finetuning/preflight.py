"""Before any question is asked: does training see the numbers that sampling made? Then every importance ratio is 1."""

import math

import torch

from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.replay import minibatches
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.foundation.errors import UserError

TRANSITIONS = 64  # that are replayed: at least so many, in whole images
SHARE = 0.1  # of the clip range: how far the ratio may be from 1 before anything was learnt


def check(
    objective: PolicyGradient, trajectories: Trajectories, steps: torch.Tensor, train_batch_size: int, clip_range: float
) -> dict[int, float]:
    """Replay trajectories that the present policy has just drawn, in the batches in which an update replays them.

    Returns for each of `steps` the largest |ratio - 1|: what the network's own rounding makes of it,
    the floor below which no clip range means anything. Raises UserError if the clip range is below ten times the
    highest of them, or a log-probability is not finite. Graphs are built as in an update, since gradient checkpointing
    changes what is computed.
    """
    if not trajectories.log_probs.isfinite().all():
        raise UserError(
            "preflight: a log-probability of the rollout is not finite; lower finetune.guidance (null: model.guidance) "
            "or use float32"
        )
    images = torch.arange(min(len(trajectories.log_probs), math.ceil(TRANSITIONS / len(steps))))
    floors = dict.fromkeys(steps.tolist(), 0.0)
    with objective.replay.policy.model.adapter.merged():
        for image, step in minibatches(images, steps, train_batch_size):
            ratio = objective.ratio(trajectories, image, step)[0].detach()
            for index, distance in zip(step.tolist(), (ratio - 1).abs().nan_to_num(math.inf).tolist(), strict=True):
                floors[index] = max(floors[index], distance)
    floor = max(floors.values())
    if not floor < SHARE * clip_range:
        worst = max(floors, key=lambda step: floors[step])
        allowed = f"{floor / SHARE:.1e}" if floor < math.inf else "no number"
        raise UserError(
            f"preflight: before any update the importance ratio is off by {floor:.1e} (at step {worst + 1}), more than "
            f"{SHARE * clip_range:.1e} = {SHARE} * finetune.clip_range: sampling and training disagree. If by rounding "
            f"alone, the smallest finetune.clip_range that it allows is {allowed}; or replay in the batches in which "
            "images are drawn (finetune.train_batch_size = model.batch_size), or use float32"
        )
    return floors
