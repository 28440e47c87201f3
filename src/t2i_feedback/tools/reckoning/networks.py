"""The networks of published checkpoints by their configurations, for programs that have no weights of theirs.

A part's configuration is what its config.json says (`Checkpoint.source`), without what is its class's default.
`parameters` are how many numbers the checkpoint's file of that part has, as its page on the hub counts them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from t2i_feedback.image_models.base import Conditioning, ImageModel
from t2i_feedback.image_models.families.stable_diffusion import StableDiffusion
from t2i_feedback.image_models.families.stable_diffusion_3 import StableDiffusion3
from t2i_feedback.image_models.families.stable_diffusion_xl import StableDiffusionXL
from t2i_feedback.image_models.section import Model

TOKENS = 77  # of CLIP's texts

SD15_UNET = {
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "sample_size": 64,
}
SDXL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}
SD35_MEDIUM = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
SD3_MEDIUM = {**SD35_MEDIUM, "dual_attention_layers": (), "pos_embed_max_size": 192, "qk_norm": None}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
}
SD3_VAE = {**VAE, "latent_channels": 16, "sample_size": 1024, "use_post_quant_conv": False, "use_quant_conv": False}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "num_heads": 64,
    "num_layers": 24,
    "tie_word_embeddings": False,
}
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


class Part(NamedTuple):
    """A module by its class and the configuration of that."""

    kind: Any
    config: dict[str, Any]

    def make(self) -> torch.nn.Module:
        described = getattr(self.kind, "config_class", None)  # of transformers; diffusers takes the values themselves
        return self.kind(described(**self.config)) if described else self.kind(**self.config)

    def changed(self, config: dict[str, Any]) -> "Part":
        return Part(self.kind, self.config | config)


@dataclass(frozen=True)
class Checkpoint:
    """A published one: how to make its parts, and what its network is told of a text."""

    family: type[ImageModel]
    profile: str  # the file of profiles/ that uses it
    source: str  # where the configurations of its parts stand
    parts: dict[str, Part]
    parameters: dict[str, int]
    scheduler: Any
    channels: int  # of its latents
    text: dict[str, tuple[int, ...]]  # name of a conditioning -> its shape for one prompt; a T5's tokens come on top

    def part(self, name: str, dtype: torch.dtype, device: str = "meta") -> torch.nn.Module:
        """Frozen, in the precisions in which it is loaded: T5 keeps some layers from float16. Weights are random."""
        with torch.device(device), default_dtype(dtype):
            module = self.parts[name].make().to(dtype).requires_grad_(False).eval()
            for layer, weight in module.named_parameters():
                if dtype == torch.float16 and any(f".{kept}." in layer for kept in _kept(module)):
                    weight.data = weight.data.float()
        return module

    def without(self, *names: str) -> "Checkpoint":
        """As one that lacks these parts."""
        return replace(self, parts={name: make for name, make in self.parts.items() if name not in names})

    def image_model(self, network: torch.nn.Module, model: Model) -> ImageModel:
        """The family around its network alone."""
        pipe = SimpleNamespace(scheduler=self.scheduler, vae_scale_factor=8, device=torch.device("cpu"))
        setattr(pipe, self.family.networks, network)
        return self.family(pipe, model)

    def conditioning(self, count: int, model: Model) -> Conditioning:
        """Of `count` prompts; without a third text encoder SD3 has rows of zeros in its place."""
        more = model.max_sequence_length if "text_encoder_3" in self.parameters else 0
        shapes = {
            name: (count, shape[0] + more, *shape[1:]) if len(shape) > 1 else (count, *shape)
            for name, shape in self.text.items()
        }
        return Conditioning({n: torch.zeros(shape, dtype=getattr(torch, model.dtype)) for n, shape in shapes.items()})

    @property
    def text_encoders(self) -> list[str]:
        return [name for name in self.parts if name.startswith("text_encoder")]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it numbers are of that precision where nothing else is said: none is ever made in a wider one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _kept(module: torch.nn.Module) -> set[str]:
    return set(getattr(module, "_keep_in_fp32_modules", None) or ())


def _sd3(name: str, transformer: dict[str, Any], parameters: int) -> Checkpoint:
    return Checkpoint(
        StableDiffusion3,
        "sd35",
        f"https://huggingface.co/stabilityai/{name}",
        {
            "transformer": Part(SD3Transformer2DModel, transformer),
            "vae": Part(AutoencoderKL, SD3_VAE),
            "text_encoder": Part(CLIPTextModelWithProjection, CLIP_L),
            "text_encoder_2": Part(CLIPTextModelWithProjection, CLIP_G),
            "text_encoder_3": Part(T5EncoderModel, T5_XXL),
        },
        {
            "transformer": parameters,
            "vae": 83_819_683,
            "text_encoder": 123_650_304,
            "text_encoder_2": 694_659_840,
            "text_encoder_3": 4_762_310_656,
        },
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        16,
        {"prompt_embeds": (TOKENS, 4096), "pooled_prompt_embeds": (2048,)},
    )


CHECKPOINTS = {
    "sd15": Checkpoint(
        StableDiffusion,
        "paper",
        "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5",
        {
            "unet": Part(UNet2DConditionModel, SD15_UNET),
            "vae": Part(AutoencoderKL, VAE),
            "text_encoder": Part(CLIPTextModel, CLIP_L),
        },
        {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        DDIMScheduler(**NOISE, set_alpha_to_one=False, clip_sample=False),
        4,
        {"prompt_embeds": (TOKENS, 768)},
    ),
    "sdxl": Checkpoint(
        StableDiffusionXL,
        "sdxl",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
        {
            "unet": Part(UNet2DConditionModel, SDXL_UNET),
            "vae": Part(AutoencoderKL, {**VAE, "sample_size": 1024}),
            "text_encoder": Part(CLIPTextModel, CLIP_L),
            "text_encoder_2": Part(CLIPTextModelWithProjection, CLIP_G),
        },
        {
            "unet": 2_567_463_684,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        },
        EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        4,
        {"prompt_embeds": (TOKENS, 2048), "pooled_prompt_embeds": (1280,)},
    ),
    # 226 M of the transformer's numbers are a table of positions, which is not trained
    "sd35": _sd3("stable-diffusion-3.5-medium", SD35_MEDIUM, 2_243_171_520 + 226_492_416),
    "sd3": _sd3("stable-diffusion-3-medium-diffusers", SD3_MEDIUM, 2_028_328_000 + 56_623_104),
}
