"""Stable Diffusion XL, the base model: the same network, told besides the pooled text, and the size, as numbers."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from t2i_feedback.image_models.base import Conditioning
from t2i_feedback.image_models.unets import UNetModel


class StableDiffusionXL(UNetModel):
    pipeline = "StableDiffusionXLPipeline"
    parts = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")
    without = {"add_watermarker": False}  # noqa: RUF012
    tokenizers = ("tokenizer_2",)
    schedulers = ("euler", "ddim", "pndm", "dpmsolver++")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        text, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning({"prompt_embeds": text, "pooled_prompt_embeds": pooled})

    def null(self) -> Conditioning:
        """Zeros where there is no negative prompt and the checkpoint was trained so, as in the pipeline's own call."""
        found = super().null()
        if self.settings.negative_prompt or not self.pipe.config.force_zeros_for_empty_prompt:
            return found
        return replace(found, tensors={name: torch.zeros_like(tensor) for name, tensor in found.tensors.items()})

    def denoise(self, x: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        text, pooled = given.tensors["prompt_embeds"], given.tensors["pooled_prompt_embeds"]
        factor = self.pipe.vae_scale_factor
        size = [side * factor for side in x.shape[-2:]]  # the image's own, its crop's corner, what is wanted
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=x.device).expand(len(x), -1)
        added = {"text_embeds": pooled, "time_ids": ids}
        return self.network(x, timesteps, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """Some VAEs of this family have a mean and a deviation of their latents instead of a shift."""
        config = self.pipe.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super().unscale(latents)
        mean, std = (
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return latents * std / config.scaling_factor + mean


FAMILY = StableDiffusionXL
