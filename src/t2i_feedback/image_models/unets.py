"""What the families with a UNet share: DDIM's steps and those of other samplers, and texts that are read once."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch

from t2i_feedback.image_models import texts, transitions
from t2i_feedback.image_models.base import ImageModel
from t2i_feedback.image_models.section import NoiseKind

# Of DDIM's variance. Where a step starts from pure noise and eta is 1, sigma^2 = 1 - a_prev, and diffusers takes the
# root of 1 - a_prev - sigma^2: rounding would make that negative, and the whole image not a number.
BELOW_1 = 1 - 1e-6


class UNetModel(ImageModel):
    networks = "unet"
    noises = ("ddim",)
    rollouts = "ddim"
    takes_eta = True

    @staticmethod
    def scheduler(name: str, config: Any) -> Any:
        """diffusers' scheduler of that name for the checkpoint's noise schedule.

        What Stable Diffusion's own configuration says is the default where a checkpoint's leaves it out: latents are
        not clipped to +-1, and the last step ends at the first timestep's noise, not at none.
        """
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

        if name == "pndm":
            return PNDMScheduler.from_config(config, skip_prk_steps=True)
        if name == "dpmsolver++":
            return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
        if name == "euler":
            return EulerDiscreteScheduler.from_config(config)
        defaults = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        ddim = DDIMScheduler.from_config(config, **{key: config.get(key, value) for key, value in defaults.items()})
        variance = ddim._get_variance
        ddim._get_variance = lambda timestep, previous: variance(timestep, previous) * BELOW_1
        return ddim

    def schedule(
        self, steps: int, kind: NoiseKind, level: float, noisy: transitions.Steps | None = None
    ) -> transitions.Schedule:
        if kind != "ddim":
            raise ValueError(f"noise of kind {kind} is a flow model's; {self.pipeline} has ddim")
        return transitions.Schedule.ddim(self.scheduler("ddim", self.pipe.scheduler.config), steps, level, noisy)

    @cached_property
    def _once(self) -> texts.OncePerText:
        return texts.OncePerText(self.network)

    def sharing(self, prompt_index: torch.Tensor) -> AbstractContextManager[object]:
        return self._once.sharing(prompt_index)
