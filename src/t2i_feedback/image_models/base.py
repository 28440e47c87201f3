"""What a text-to-image pipeline does: embed texts, draw, decode; and its UNet as a policy over denoising steps."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.image_models import texts, transitions

Pipeline = Any  # a StableDiffusionPipeline; diffusers registers its parts at run time, which types cannot say


@torch.inference_mode()
def draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    eta: float,
    size: int,
    negative_prompt: str = "",
) -> list[Image.Image]:
    """One image per prompt, `size` pixels square, from the noise that its seed gives.

    Raises UserError if a number is not finite.
    """
    guided = guidance > 1
    latents = pipe(
        prompt_embeds=embed(pipe, prompts),
        negative_prompt_embeds=embed(pipe, [negative_prompt]).expand(len(prompts), -1, -1) if guided else None,
        generator=generators(seeds),
        num_inference_steps=steps,
        guidance_scale=guidance,
        eta=eta,
        height=size,
        width=size,
        output_type="latent",
    ).images
    return decode(pipe, latents)


@torch.no_grad()
def decode(pipe: Pipeline, latents: torch.Tensor) -> list[Image.Image]:
    """The images of latents [B, C, H, W], in the VAE's own precision.

    Raises UserError if a number is not finite: it would be saved as a black pixel.
    """
    if not latents.isfinite().all():
        raise UserError(f"model.dtype: the UNet's latents are not finite in {latents.dtype}; use bfloat16 or float32")
    pixels = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(pipe.vae.dtype), return_dict=False)[0]
    if not pixels.isfinite().all():
        raise UserError(f"model.vae_dtype: the VAE overflows in {pixels.dtype}; set it to float32")
    return pipe.image_processor.postprocess(pixels, output_type="pil")


@torch.no_grad()
def flag(pipe: Pipeline, images: list[Image.Image]) -> list[bool]:
    """Which images the checkpoint's safety checker flags."""
    checker = pipe.safety_checker
    seen = pipe.feature_extractor(images, return_tensors="pt").pixel_values.to(pipe.device, checker.dtype)
    return checker(clip_input=seen, images=torch.zeros(len(images), 0))[1]  # it would blacken what it is given


def tokens_lost(tokenizer, prompts: Sequence[str]) -> list[int]:
    """How many tokens of each prompt lie beyond the text encoder's window."""
    window = tokenizer.model_max_length
    full = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    return [max(0, len(ids) - window) for ids in full]


@dataclass
class Policy:
    """The UNet under classifier-free guidance as the policy of the denoising process."""

    unet: torch.nn.Module
    schedule: transitions.Schedule
    guidance: float  # 1 = none; the same in sampling and training, else the ratio is not 1
    null: torch.Tensor  # [1, tokens, width] embedding of the negative prompt, mostly the empty one
    once: texts.OncePerText | None = None  # rows of a batch that follow each other with one text share its work

    def mean(
        self,
        x_t: torch.Tensor,
        step: torch.Tensor,
        embeddings: torch.Tensor,
        prompt_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean of the transition from x_t [B, C, H, W] at step indices `step` [B]; embeddings [B, tokens, width].

        `prompt_index` [B], on the CPU, is equal where prompts are equal; `once` makes use of it.
        """
        x, timesteps, index = x_t, self.schedule.timesteps[step].to(x_t.device), prompt_index
        if self.guidance != 1:  # the empty prompt's rows first
            x, timesteps = torch.cat([x, x]), torch.cat([timesteps, timesteps])
            embeddings = torch.cat([self.null.expand(len(x_t), -1, -1), embeddings])
            index = None if index is None else torch.cat([torch.full_like(index, -1), index])
        with nullcontext() if self.once is None or index is None else self.once.sharing(index):
            output = self.unet(x, timesteps, encoder_hidden_states=embeddings, return_dict=False)[0]
        if self.guidance != 1:
            unconditional, conditional = output.chunk(2)
            output = unconditional + self.guidance * (conditional - unconditional)
        return transitions.transition_mean(self.schedule, step.to(x_t.device), output, x_t)


@torch.no_grad()
def embed(pipe: Pipeline, prompts: Sequence[str]) -> torch.Tensor:
    """Text embeddings [len(prompts), tokens, width] as the pipeline itself computes them."""
    return pipe.encode_prompt(list(prompts), pipe.device, 1, do_classifier_free_guidance=False)[0]
