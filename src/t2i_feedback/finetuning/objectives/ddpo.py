"""The clipped importance-sampled policy gradient (DDPO-IS: Black et al., *Training Diffusion Models with Reinforcement
Learning*, 2024), which is Flow-GRPO's for flow models."""

import torch

from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.rollout import Trajectories


class Ddpo(PolicyGradient):
    def ratio(self, drawn: Trajectories, image: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, mean = self.replay.log_prob(drawn, image, step)
        return torch.exp(log_prob - drawn.log_probs[image, step].to(log_prob.device)), mean


OBJECTIVE = Ddpo
