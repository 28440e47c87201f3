"""Stable Diffusion 1.x and 2.x."""

from collections.abc import Sequence

import torch

from t2i_feedback.image_models.base import Conditioning
from t2i_feedback.image_models.unets import UNetModel


class StableDiffusion(UNetModel):
    pipeline = "StableDiffusionPipeline"
    parts = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    safety_parts = ("safety_checker", "feature_extractor")
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}  # noqa: RUF012
    tokenizers = ("tokenizer",)
    schedulers = ("ddim", "pndm", "dpmsolver++", "euler")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        found = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)[0]
        return Conditioning({"prompt_embeds": found})

    def denoise(self, x: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        text = given.tensors["prompt_embeds"]
        return self.network(x, timesteps, encoder_hidden_states=text, return_dict=False)[0]


FAMILY = StableDiffusion
