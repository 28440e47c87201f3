"""LoRA adapters (Hu et al., 2021) of a UNet: put a fresh one on, save it, load it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"  # the name under which diffusers itself looks


def add_adapter(unet, rank: int, alpha: int, targets: list[str], seed: int) -> list["torch.nn.Parameter"]:
    """Put a fresh LoRA adapter on the UNet, in float32; at first it changes nothing. Returns its parameters."""
    import torch
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
        except ValueError:
            raise UserError(
                f"finetune.lora_targets: the UNet has no modules that end in {', '.join(targets)}; there are "
                f"{', '.join(adaptable(unet))}"
            ) from None
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def adaptable(unet) -> list[str]:
    """The endings by which `lora_targets` can name the UNet's linear and convolutional layers."""
    import torch

    layers = (name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d))
    endings = (name.split(".")[-2:] for name in layers)
    return sorted({".".join(ending) if ending[-1].isdecimal() else ending[-1] for ending in endings})


def load_adapter(pipe: Any, folder: Path, model: str) -> None:
    """Put the adapter that `save_adapter` wrote on a pipeline of the model of that name.

    Raises UserError if it was made for a model of another shape.
    """
    try:
        pipe.load_lora_weights(folder, weight_name=ADAPTER_WEIGHTS)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is no adapter of {model} ({first_line(error)}): run `dvc repro finetune` to make one"
        ) from None


def save_adapter(unet, folder: Path) -> None:
    """Write the adapter as diffusers reads it (`pipe.load_lora_weights(folder)`), the same bytes in every process."""
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    settings = {
        f"unet.{key}": sorted(value) if isinstance(value, set) else value
        for key, value in unet.peft_config["default"].to_dict().items()
    }
    # one entry of metadata: safetensors writes several in an order of chance, and diffusers' own writing has two
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        weight_name=ADAPTER_WEIGHTS,
        save_function=lambda weights, path: save_file(weights, path, metadata=metadata),
    )
