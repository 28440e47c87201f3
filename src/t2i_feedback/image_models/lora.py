"""LoRA adapters (Hu et al., 2021) of a denoising network: put a fresh one on, save it, load it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

WITH_ALPHAS = "lora_for_comfyui_and_a1111.safetensors"
SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def add_adapter(network, rank: int, alpha: int, targets: list[str], seed: int) -> list["torch.nn.Parameter"]:
    """Put a fresh LoRA adapter on the network, in float32; at first it changes nothing. Returns its parameters.

    Raises UserError if one of the targets names no layer.
    """
    import torch
    from peft import LoraConfig

    names = [name for name, _ in layers(network)]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if unknown:
        raise UserError(
            f"finetune.lora_targets: the {type(network).__name__} has no modules that end in {', '.join(unknown)}; "
            f"there are {', '.join(adaptable(network))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights="gaussian"))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def layers(network) -> "Iterator[tuple[str, torch.nn.Module]]":
    """The network's linear and convolutional layers with their names."""
    import torch

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            yield name, module


def adaptable(network) -> list[str]:
    """The endings by which `lora_targets` can name those layers."""
    endings = (name.split(".")[-2:] for name, _ in layers(network))
    return sorted({".".join(ending) if ending[-1].isdecimal() else ending[-1] for ending in endings})


def load_adapter(pipe: Any, folder: Path, model: str) -> None:
    """Put the adapter that `save_adapter` wrote on a pipeline of the model of that name.

    Raises UserError if it was made for a model of another shape, or its settings are of another PEFT.
    """
    _check_settings(folder)
    try:
        pipe.load_lora_weights(folder, weight_name=ADAPTER_WEIGHTS)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is no adapter of {model} ({first_line(error)}): run `dvc repro finetune` to make one"
        ) from None


def _check_settings(folder: Path) -> None:
    """Raise UserError when the file's settings have keys that this PEFT does not know: one newer than it wrote them."""
    from dataclasses import fields

    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft import LoraConfig
    from safetensors import SafetensorError, safe_open

    file = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(file, framework="pt") as opened:
            written = json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run `dvc repro finetune` to make it") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): run `dvc repro finetune` to make it") from None
    unknown = {key.partition(".")[2] for key in written} - {field.name for field in fields(LoraConfig)}
    if unknown:
        raise UserError(
            f"{file} has settings that this version of peft does not know ({', '.join(sorted(unknown))}): a newer one "
            "wrote it; update peft, or run `dvc repro finetune`"
        )


def save_adapter(network, folder: Path, pipeline: Any, prefix: str) -> None:
    """Write the adapter twice, the same bytes in every process: as diffusers reads it
    (`pipe.load_lora_weights(folder)`), and in the layout with alphas that ComfyUI, A1111 and kohya's scripts read.

    `pipeline` is the class that will load it, `prefix` its name for the network: unet or transformer.

    The settings are those without which the weights mean nothing: whatever is as PEFT has it by default is left out, so
    that other versions of PEFT, which know other keys, read it.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = network.peft_config["default"]
    settings = {
        f"{prefix}.lora_alpha": config.lora_alpha,
        f"{prefix}.r": config.r,
        f"{prefix}.target_modules": sorted(config.target_modules),
    }
    # one entry of metadata: safetensors writes several in an order of chance, and diffusers' own writing has two
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(network)
    pipeline.save_lora_weights(
        folder,
        **{f"{prefix}_lora_layers": weights},
        weight_name=ADAPTER_WEIGHTS,
        save_function=lambda weights, path: save_file(weights, path, metadata=metadata),
    )
    save_file(_with_alphas(weights, config.lora_alpha, prefix), folder / WITH_ALPHAS)


def _with_alphas(weights: "Mapping[str, torch.Tensor]", alpha: float, prefix: str) -> dict[str, "torch.Tensor"]:
    """PEFT's names in kohya's layout: `lora_PREFIX_MODULE.lora_down.weight`, `.lora_up.weight` and `.alpha` for each
    module, its dots as underscores. Such readers scale by alpha / rank, and by 1 where there is no alpha."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        module, _, which = name.removesuffix(".weight").rpartition(".")
        renamed = f"lora_{prefix}_{module.replace('.', '_')}"
        found[f"{renamed}.{SIDES[which]}.weight"] = tensor.contiguous()
        found[f"{renamed}.alpha"] = torch.tensor(float(alpha))
    return found
