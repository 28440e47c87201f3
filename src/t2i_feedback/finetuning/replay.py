"""What the present policy says of transitions that were drawn earlier: their log-probabilities, and its KL to the base.

A transition is one denoising step of one image. Below `image` [B] and `step` [B] name B of them: indices of
images of the trajectories, and of steps.
"""

from dataclasses import dataclass

import torch

from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import Conditioning, Policy


@dataclass
class Replay:
    policy: Policy
    prompts: Conditioning  # into which the trajectories' prompt_index points

    def log_prob(
        self, trajectories: Trajectories, image: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability [B] and mean [B, ...] of the transitions under the present policy."""
        device = self.policy.model.device
        x_t = trajectories.latents[image, step].to(device)
        x_prev = trajectories.latents[image, step + 1].to(device)
        prompt_index = trajectories.prompt_index[image]
        mean = self.policy.mean(x_t, step, self.prompts[prompt_index].to(device), prompt_index)
        return transitions.log_prob(self.policy.schedule, step, mean, x_prev), mean

    def kl(
        self, trajectories: Trajectories, image: torch.Tensor, step: torch.Tensor, mean: torch.Tensor
    ) -> torch.Tensor:
        """KL(policy || base) [B] of the transitions, per latent dimension; `mean` is the policy's, from `log_prob`."""
        with torch.no_grad(), self.policy.model.adapter.base():
            base_mean = self.log_prob(trajectories, image, step)[1]
        return transitions.kl_divergence(self.policy.schedule, step, mean, base_mean)
