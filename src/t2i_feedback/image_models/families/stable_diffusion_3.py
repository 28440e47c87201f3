"""Stable Diffusion 3 and 3.5: a flow model, whose transformer reads two CLIP texts and, where it has one, a T5's."""

from collections.abc import Sequence
from typing import Any

import torch

from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import Conditioning, ImageModel
from t2i_feedback.image_models.section import NoiseKind


class StableDiffusion3(ImageModel):
    pipeline = "StableDiffusion3Pipeline"
    networks = "transformer"
    parts = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae", "scheduler")
    optional = ("tokenizer_3", "text_encoder_3")
    tokenizers = ("tokenizer_3", "tokenizer")
    schedulers = ("euler",)
    rollouts = "euler"
    noises = ("flow_sde", "cps", "dance_sde")
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )

    @staticmethod
    def scheduler(name: str, config: Any) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(config)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return Conditioning({"prompt_embeds": text, "pooled_prompt_embeds": pooled})

    def denoise(self, x: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        return self.network(
            hidden_states=x,
            timestep=timesteps,
            encoder_hidden_states=given.tensors["prompt_embeds"],
            pooled_projections=given.tensors["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def schedule(
        self, steps: int, kind: NoiseKind, level: float, noisy: transitions.Steps | None = None
    ) -> transitions.Schedule:
        scheduler = self.scheduler("euler", self.pipe.scheduler.config)
        scheduler.set_timesteps(steps, mu=self._shift(scheduler.config))
        return transitions.Schedule.flow(scheduler.timesteps, scheduler.sigmas, kind, level, noisy)

    def _shift(self, config: Any) -> float | None:
        """That the pipeline gives a scheduler whose shift depends on the image's size; None for any other."""
        if not config.use_dynamic_shifting:
            return None
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        (_, height, width), patch = self.latent_shape(), self.network.config.patch_size
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return calculate_shift((height // patch) * (width // patch), *(config[name] for name in names))


FAMILY = StableDiffusion3
