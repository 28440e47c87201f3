"""What the present policy makes of images that were drawn earlier: its log-probabilities, and its KL to the base.

A transition is one denoising step of one image. Below `image` [B] and `step` [B] name B of them: indices of
images of what was drawn, and of steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from t2i_feedback.finetuning.rollout import Drawn, Trajectories
from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import Conditioning, Policy


@dataclass
class Replay:
    policy: Policy
    prompts: Conditioning  # into which the images' prompt_index points

    def clean(self, drawn: Drawn, image: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the present policy makes of the clean latents at these steps, and the transitions' means; [B, ...]."""
        device, schedule = self.policy.model.device, self.policy.schedule
        x_t = drawn.before(schedule, image, step).to(device)
        prompt_index = drawn.prompt_index[image]
        return self.policy.step(x_t, step, self.prompts[prompt_index].to(device), prompt_index)

    def log_prob(
        self, trajectories: Trajectories, image: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability [B] and mean [B, ...] of the transitions under the present policy."""
        _, mean = self.clean(trajectories, image, step)
        x_prev = trajectories.latents[image, step + 1].to(mean.device)
        return transitions.log_prob(self.policy.schedule, step, mean, x_prev), mean

    def kl(self, drawn: Drawn, image: torch.Tensor, step: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """KL(policy || base) [B] of the transitions, per latent dimension; `mean` is the policy's, from `clean`."""
        with torch.no_grad(), self.policy.model.adapter.base():
            base_mean = self.clean(drawn, image, step)[1]
        return transitions.kl_divergence(self.policy.schedule, step, mean, base_mean)


def minibatches(images: torch.Tensor, steps: torch.Tensor, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The transitions of images [P] at steps [S], image by image, in pairs (image [B], step [B]).

    B is at most `limit` and at least nine tenths of it: the size that leaves the longest runs of one image, and so of
    one text, which is then computed once (`image_models.texts`).
    """
    sizes = range(math.ceil(0.9 * limit), limit + 1)
    size = max(sizes, key=lambda size: (math.gcd(size, len(steps)), size))
    image, step = images.repeat_interleave(len(steps)), steps.repeat(len(images))
    for start in range(0, len(image), size):
        yield image[start : start + size], step[start : start + size]
