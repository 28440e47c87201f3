"""Load a text-to-image checkpoint of the Stable Diffusion layout, with or without an adapter."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.errors import UserError
from t2i_feedback.params import Model

if TYPE_CHECKING:
    import torch


def pick_device(device: str) -> str:
    """`auto` means the first of CUDA, Apple's MPS, CPU that is there. Raises UserError for one that is not."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, available in there.items() if available)
    if not there[device]:
        raise UserError(f"model.device: {device} is not available on this machine; use auto or cpu")
    return device


def load_pipeline(model: Model, adapter: Path | None = None) -> Any:
    """The pipeline with a DDIM scheduler, ready to draw. Raises UserError if the checkpoint cannot be had."""
    local = Path(model.name).is_dir()
    if local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    device = pick_device(model.device)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            model.name,
            revision=None if local else model.revision,
            dtype=getattr(torch, model.dtype),
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise UserError(
            f"model.name: {model.name!r} is neither a folder here nor in the hub cache ({cache}), and could not be "
            f"fetched; with internet, `hf download {model.name}` fetches it ({str(error).splitlines()[0]})"
        ) from None
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False).eval()
    if adapter is not None:
        pipe.load_lora_weights(adapter, weight_name=ADAPTER_WEIGHTS)
    return pipe.to(device)


def load_tokenizer(model: Model):
    """The checkpoint's tokenizer alone: cheap, for counting tokens."""
    from transformers import CLIPTokenizer

    local = Path(model.name).is_dir()
    return CLIPTokenizer.from_pretrained(
        model.name, subfolder="tokenizer", revision="main" if local else model.revision
    )


ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"  # the name under which diffusers itself looks


def add_adapter(unet, rank: int, alpha: int, targets: list[str], seed: int) -> list["torch.nn.Parameter"]:
    """Put a fresh LoRA adapter on the UNet, in float32; at first it changes nothing. Returns its parameters."""
    import torch
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
        except ValueError as error:
            raise UserError(f"finetune.lora_targets: {str(error).splitlines()[0]}") from None
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def save_adapter(unet, folder: Path) -> None:
    """Write the adapter as diffusers reads it (`pipe.load_lora_weights(folder)`)."""
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name=ADAPTER_WEIGHTS,
    )
