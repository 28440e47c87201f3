"""Load a text-to-image checkpoint of any family that there is, with or without an adapter."""

import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import hub
from t2i_feedback.foundation.device import pick
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.image_models.section import Model

if TYPE_CHECKING:
    import torch

    from t2i_feedback.image_models.base import ImageModel

log = logging.getLogger(__name__)


def load_image_model(model: Model, adapter: Path | None = None, *, training: bool = False) -> "ImageModel":
    """The checkpoint as `model` describes it, ready to draw. Raises UserError if it cannot be had.

    `training`: with the family's steps that have the noise which a policy needs, whatever `model.scheduler` is; not
    compiled, since an adapter is still to come; and without a safety checker, which would be a reward of its own.
    """
    local, index, family = _family(model)
    safety = family.safety_parts if model.safety_checker != "off" else ()
    if model.safety_checker != "off" and not safety:
        raise UserError(
            f"model.safety_checker: a {family.pipeline} has no safety checker; set model.safety_checker to off"
        )
    for part in (*family.parts, *safety):
        _check_has(model, index, part, local)
    if training:
        _check_many_steps(model, index, local)
    scheduler = _scheduler_name(model, family)
    import diffusers
    import torch
    from diffusers.utils import logging

    logging.set_verbosity_error()
    device = pick(model.device, "model.device")
    revision = None if local else model.revision
    given: dict[str, Any] = {
        **family.without,
        **{part: None for part in family.optional if not index.get(part, [None])[0]},
    }
    try:
        if safety and not training:
            from transformers import CLIPImageProcessor

            # by its present name: checkpoints of SD 1.x call it CLIPFeatureExtractor, which transformers 5 has not
            given = {
                "feature_extractor": CLIPImageProcessor.from_pretrained(
                    model.name, subfolder="feature_extractor", revision=revision or "main"
                )
            }
        pipe = getattr(diffusers, family.pipeline).from_pretrained(
            model.name,
            revision=revision,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            variant=model.variant or None,
            **given,
            **_quantised(model, family.networks, device),
        )
        _set_windows(pipe)
    except (OSError, ValueError) as error:
        advice = "" if local else f"; {hub.fetch(model.name, model.revision)}"
        raise UserError(f"model.name: {model.name!r} cannot be loaded: {first_line(error)}{advice}") from None
    made = family(pipe, model)
    made.check_size()
    pipe.scheduler = family.scheduler(family.rollouts if training else scheduler, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if model.vae_dtype == "float32":
        pipe.vae.float()
    for module in (made.network, pipe.vae, *text_encoders(pipe)):
        module.requires_grad_(False).eval()
    if adapter is not None:
        made.load_adapter(adapter)
    if model.attention_slicing:
        pipe.enable_attention_slicing()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.offload and device == "cpu":
        log.warning("model.offload: everything is on the CPU already")
    if model.offload and device != "cpu":
        _offload(made, device)
    else:
        pipe.to(device)
    if model.compile and not training:
        _compile(made)
    return made


def load_tokenizer(model: Model):
    """The tokenizer of the checkpoint that reads the longest text, alone: cheap, for counting tokens."""
    local, index, family = _family(model)
    part = next((part for part in family.tokenizers if index.get(part, [None])[0]), family.tokenizers[-1])
    _check_has(model, index, part, local)
    import transformers

    revision = "main" if local else model.revision
    tokenizer = getattr(transformers, index[part][1]).from_pretrained(model.name, subfolder=part, revision=revision)
    if part == "tokenizer_3":
        _set_window(tokenizer, model.max_sequence_length)
    elif tokenizer.model_max_length > WINDOW:
        encoder = part.replace("tokenizer", "text_encoder")
        config = transformers.CLIPTextConfig.from_pretrained(model.name, subfolder=encoder, revision=revision)
        _set_window(tokenizer, config.max_position_embeddings)
    return tokenizer


def text_encoders(pipe: Any) -> list["torch.nn.Module"]:
    """Those that the pipeline has."""
    found = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return [encoder for encoder in found if encoder is not None]


def _set_windows(pipe: Any) -> None:
    """Where a tokenizer names no bound, or one beyond it, the text encoder's number of positions is its window."""
    for number in ("", "_2"):
        if encoder := getattr(pipe, f"text_encoder{number}", None):
            _set_window(getattr(pipe, f"tokenizer{number}"), encoder.config.max_position_embeddings)
    if hasattr(pipe, "tokenizer_max_length"):  # SD3's pipeline has looked before
        pipe.tokenizer_max_length = pipe.tokenizer.model_max_length


def _set_window(tokenizer, positions: int) -> None:
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def _scheduler_name(model: Model, family: "type[ImageModel]") -> str:
    """Raises UserError if the family has no scheduler of the name that was chosen."""
    if model.scheduler == "auto":
        return family.schedulers[0]
    if model.scheduler not in family.schedulers:
        raise UserError(
            f"model.scheduler: a {family.pipeline} cannot be drawn with {model.scheduler}; there are auto, "
            f"{', '.join(family.schedulers)}"
        )
    return model.scheduler


def _quantised(model: Model, network: str, device: str) -> dict[str, Any]:
    """The argument of `from_pretrained` by which bitsandbytes stores the network's weights in fewer bits."""
    if model.quantisation == "none":
        return {}
    import importlib.util

    if device != "cuda":
        raise UserError(f"model.quantisation: {model.quantisation} needs a CUDA GPU; set it to none on {device}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.quantisation: bitsandbytes is not installed; `pip install bitsandbytes`, or set it to none"
        )
    import torch
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig

    config: Any = (
        BitsAndBytesConfig(load_in_8bit=True)
        if model.quantisation == "8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, model.dtype)
        )
    )
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping={network: config})}


FEW_STEPS = ("LCMScheduler", "TCDScheduler")
FEW_STEPS_NAMES = re.compile(r"turbo|lightning|lcm|schnell|hyper|distill", re.IGNORECASE)


def _check_many_steps(model: Model, index: dict[str, Any], local: bool) -> None:
    """Raises UserError if the checkpoint was distilled to few steps, as its parts or its name on the hub say."""
    scheduler = index["scheduler"][1]
    named = not local and FEW_STEPS_NAMES.search(model.name.rpartition("/")[2])
    if scheduler in FEW_STEPS or index.get("is_distilled") or named:
        raise UserError(
            f"model.name: {model.name!r} is distilled to few steps, without the noise and guidance that fine-tuning "
            "needs: each of its steps is a jump, whose probability says little. Fine-tune the model that it was "
            "distilled from"
        )


WINDOW = 100_000  # no text encoder takes in so many tokens: a tokenizer that says more says nothing
INDEX = "diffusers checkpoint: it has no model_index.json"


def _family(model: Model) -> tuple[bool, dict[str, Any], "type[ImageModel]"]:
    """Whether the checkpoint is a folder here, its model_index.json, and its family.

    Raises UserError if it is no checkpoint, or of no family that there is.
    """
    folder = Path(model.name)
    local = folder.is_dir()
    if local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    index = _index(folder / "model_index.json" if local else _fetched_index(model), model.name)
    from t2i_feedback.image_models.families import families

    known, named = families(), index.get("_class_name")
    if named not in known:
        raise UserError(
            f"model.name: {model.name!r} is a {named}, and there is no family for it; there are "
            f'{", ".join(known)}. docs/image-models.md shows how to add one ("A family of your own")'
        )
    return local, index, known[named]


def _check_has(model: Model, index: dict[str, Any], part: str, local: bool) -> None:
    """Raises UserError if the checkpoint lacks a part, or its weights."""
    if not index.get(part, [None])[0]:
        why = "; set model.safety_checker to off" if part in ("safety_checker", "feature_extractor") else ""
        raise UserError(f"model.name: {model.name!r} has no {part}{why}")
    if local:
        _check_part(Path(model.name) / part, model.variant)


def _check_part(folder: Path, variant: str) -> None:
    """Raises UserError if a part's folder is missing, or has no weights (of the variant) where it should."""
    name = f"model.name: {str(folder.parent)!r}"
    if not folder.is_dir():
        raise UserError(f"{name} has no folder {folder.name}/, though its model_index.json names it")
    if folder.name.startswith(("tokenizer", "scheduler", "feature_extractor")) or variant in (
        there := _variants(folder)
    ):
        return
    if there:
        kinds = ", ".join(one or '""' for one in sorted(there))
        raise UserError(
            f"model.variant: the weights in {folder} are of the variant {kinds}, not {variant or 'of none'}: set "
            f"model.variant to {kinds}"
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".ckpt", ".pt"))
    if pickled:
        raise UserError(
            f"{name} has {folder.name} as {pickled[0]} alone, a pickle, which can run any code when it is read; "
            "save it as safetensors (`pipe.save_pretrained`), or name a revision that has them"
        )
    raise UserError(f"{name} has no weights in {folder.name}/: a *.safetensors file is needed")


def _variants(folder: Path) -> set[str]:
    """Of a part's weights: `fp16` of model.fp16.safetensors, "" of model.safetensors; shards are one."""
    names = (re.sub(r"[.-]\d+-of-\d+", "", file.name) for file in folder.glob("*.safetensors"))
    return {name.removesuffix(".safetensors").partition(".")[2] for name in names}


def _index(path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"model.name: the folder {name!r} is no diffusers checkpoint: it has no model_index.json"
        ) from None
    except ValueError:
        raise UserError(f"model.name: the model_index.json of {name!r} is not JSON; fetch it again") from None


def _fetched_index(model: Model) -> Path:
    """A hub model's model_index.json, from the cache or the hub. Raises UserError that says what to do."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(model.name, "model_index.json", revision=model.revision))
    except errors.RevisionNotFoundError:
        raise UserError(f"model.revision: {model.name!r} has no revision {model.revision!r}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"model.name: {model.name!r} {hub.why(model.name, model.revision, error, INDEX)}") from None


def _offload(made: "ImageModel", device: str) -> None:
    """The network goes to the device; what works once per batch rests in main memory."""
    pipe = made.pipe
    made.network.to(device)
    once = [*text_encoders(pipe), pipe.vae.post_quant_conv, pipe.vae.decoder, getattr(pipe, "safety_checker", None)]
    for module in once:
        if module is not None:
            rest_on_cpu(module, device)


def rest_on_cpu(module: "torch.nn.Module", device: str) -> None:
    """The module comes to the device when it is called, and goes back when it is done."""

    def come(module: "torch.nn.Module", args: object) -> None:
        module.to(device)

    def go(module: "torch.nn.Module", args: object, output: object) -> None:
        module.to("cpu")

    module.register_forward_pre_hook(come)
    module.register_forward_hook(go)


def _compile(made: "ImageModel") -> None:
    """Compile the network, and take one step with it: where that fails, it stays as it was and one line says so."""
    import torch

    model, network = made.settings, made.network
    eager = network.forward
    batch = model.batch_size * (2 if model.guidance > 1 else 1)
    latents = torch.zeros(batch, *made.latent_shape(), device=made.device, dtype=made.dtype)
    text = made.null().expand(batch)
    made.pipe.scheduler.set_timesteps(model.steps, device=made.device)
    network.forward = torch.compile(eager)
    try:
        with torch.inference_mode():
            made.denoise(latents, made.pipe.scheduler.timesteps[0].expand(batch), text)
    except Exception as error:  # a compiler that is missing, an unknown operation: each has a type of its own
        network.forward = eager
        log.warning("model.compile: torch.compile failed, drawing goes on without it (%s)", first_line(error))
