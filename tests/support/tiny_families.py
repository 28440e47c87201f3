"""A checkpoint of a few thousand random weights for every family, with latents that are scaled and perhaps shifted.

Factors of 1 and 0 would hide a family that forgets them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import tiny_diffusion
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
)
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

SIZE = (24, 16)  # pixels, width and height; a latent is 2 x 2 of them
TOKENS = 77


def vae(shift: float | None) -> AutoencoderKL:
    return tiny_diffusion.vae(scaling_factor=0.7, shift_factor=shift, force_upcast=False)


def projected(base: Any) -> CLIPTextModelWithProjection:
    """A text encoder like the tiny pipeline's, with two layers and a projection."""
    config = base.text_encoder.config.to_dict() | {"num_hidden_layers": 2, "projection_dim": 8}
    return CLIPTextModelWithProjection(type(base.text_encoder.config)(**config))


def sd(base: Any) -> Any:
    base.vae = vae(None)
    return base


def sdxl(base: Any) -> Any:
    unet = tiny_diffusion.unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    schedule |= {"timestep_spacing": "leading"}  # as the published base model
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(None),
        text_encoder=base.text_encoder,
        text_encoder_2=projected(base),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**schedule),
        force_zeros_for_empty_prompt=True,
    )


def sd3(base: Any) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for block in transformer.transformer_blocks:  # as initialised, time and text would change next to nothing
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.3)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(0.3),
        text_encoder=projected(base),
        tokenizer=base.tokenizer,
        text_encoder_2=projected(base),
        tokenizer_2=base.tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(base: Any) -> Any:
    """The example of docs/image-models.md; its network tells a token's place by rotation."""
    letters = [(chr(code), -1.0) for code in range(97, 123)]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *letters], extra_ids=0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(0.3),
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        text_encoder_2=T5EncoderModel(config),
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


FAMILIES: dict[str, Callable[[Any], Any]] = {"sd": sd, "sdxl": sdxl, "sd3": sd3}


def checkpoint(name: str, folder: Path) -> Path:
    """A folder that the family's pipeline saved."""
    base = tiny_diffusion.pipeline(folder / "made")  # seeds the generator
    # one layer would leave no last but one, which SDXL's first encoder is read at
    config = base.text_encoder.config.to_dict() | {"num_hidden_layers": 2}
    base.text_encoder = type(base.text_encoder)(type(base.text_encoder.config)(**config))
    base.tokenizer = CLIPTokenizer.from_pretrained(folder / "made", model_max_length=TOKENS)
    made = (FAMILIES | {"flux": flux})[name](base)
    made.save_pretrained(folder / name)
    return folder / name
