"""GRPO-Guard, of flow models: importance ratios whose mean and spread are the same at every step (Wang et al.,
*GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping*, 2025).

With m the distance of the means of the present policy and of the one that drew, and s the transition's noise, the log
of the plain ratio is -m^2 / 2 s^2 plus the noise drawn times m / s: its mean lies below 0, and its spread grows as s
shrinks, so that one clip range clips some steps always and others never. Here

    ratio = exp(s (log p - log p_old + m^2 / 2 s^2)),    loss = -min(ratio A, clipped ratio A) / h

where h is how far the step goes in the flow's time: without it steps of little noise would teach the most.
"""

from collections.abc import Sequence

import torch

from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation.errors import UserError


class GrpoGuard(PolicyGradient):
    needs_means = True

    def __init__(self, replay: Replay, parameters: Sequence[torch.nn.Parameter], config: Finetune):
        super().__init__(replay, parameters, config)
        if replay.policy.schedule.prediction_type != "flow":
            raise UserError(
                "finetune.objective: grpo_guard divides by a flow's step, and model.name is no flow model; use ddpo"
            )

    def ratio(self, drawn: Trajectories, image: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert drawn.means is not None
        log_prob, mean = self.replay.log_prob(drawn, image, step)
        sigma = self.replay.policy.schedule.sigma[step].to(mean.device)
        moved = (mean - drawn.means[image, step].to(mean.device)).square().flatten(1).mean(1)
        gained = log_prob - drawn.log_probs[image, step].to(mean.device)
        return torch.exp(sigma * (gained + moved / (2 * sigma**2))), mean

    def weight(self, step: torch.Tensor) -> torch.Tensor:
        time = self.replay.policy.schedule.noise
        lengths = time - torch.cat([time[1:], time.new_zeros(1)])
        return (1 / lengths[step]).to(self.replay.policy.model.device)


OBJECTIVE = GrpoGuard
