"""GRPO-Guard: importance ratios whose mean and spread are the same at every step (Wang et al., *GRPO-Guard: Mitigating
Implicit Over-Optimization in Flow Matching via Regulated Clipping*, 2025).

With m the distance of the means of the present policy and of the one that drew, and s the transition's noise, the log
of the plain ratio is -m^2 / 2 s^2 plus the noise drawn times m / s: its mean lies below 0, and its spread grows as s
shrinks, so that one clip range clips some steps always and others never. Here

    ratio = exp(s (log p - log p_old + m^2 / 2 s^2)),    loss = -min(ratio A, clipped ratio A) / h

where h is how far the step goes in the flow's time: steps teach by how much they do, and not by how little noise they
have. The authors have flow models; a model of DDIM is taken at the flow's time of the same ratio of noise to signal.
"""

import torch

from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.rollout import Trajectories


class GrpoGuard(PolicyGradient):
    needs_means = True

    def ratio(self, drawn: Trajectories, image: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert drawn.means is not None
        log_prob, mean = self.replay.log_prob(drawn, image, step)
        sigma = self.replay.policy.schedule.sigma[step].to(mean.device)
        moved = (mean - drawn.means[image, step].to(mean.device)).square().flatten(1).mean(1)
        gained = log_prob - drawn.log_probs[image, step].to(mean.device)
        return torch.exp(sigma * (gained + moved / (2 * sigma**2))), mean

    def weight(self, step: torch.Tensor) -> torch.Tensor:
        return (1 / self.replay.policy.schedule.length[step]).to(self.replay.policy.model.device)


OBJECTIVE = GrpoGuard
