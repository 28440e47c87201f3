"""Load a text-to-image checkpoint of the Stable Diffusion layout, with or without an adapter."""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import hub
from t2i_feedback.foundation.device import pick
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.image_models.lora import load_adapter
from t2i_feedback.image_models.section import Model, Scheduler

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def load_pipeline(model: Model, adapter: Path | None = None, *, training: bool = False) -> Any:
    """The pipeline as `model` describes it, ready to draw. Raises UserError if the checkpoint cannot be had.

    `training`: with DDIM's steps whatever `model.scheduler` is, since they alone have the noise that the policy needs;
    not compiled, since an adapter is still to come; and without a safety checker, which would be a reward of its own.
    """
    wanted = PARTS if model.safety_checker == "off" else PARTS + SAFETY_PARTS
    local = _check(model, wanted)
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging
    from transformers import CLIPImageProcessor

    logging.set_verbosity_error()
    device = pick(model.device, "model.device")
    revision = None if local else model.revision
    parts: dict[str, Any] = {"feature_extractor": None, "safety_checker": None, "requires_safety_checker": False}
    try:
        if model.safety_checker != "off" and not training:
            # by its present name: checkpoints of SD 1.x call it CLIPFeatureExtractor, which transformers 5 has not
            parts = {
                "feature_extractor": CLIPImageProcessor.from_pretrained(
                    model.name, subfolder="feature_extractor", revision=revision or "main"
                )
            }
        pipe = StableDiffusionPipeline.from_pretrained(
            model.name,
            revision=revision,
            dtype=getattr(torch, model.dtype),
            use_safetensors=True,
            variant=model.variant or None,
            **parts,
        )
        _set_window(pipe.tokenizer, pipe.text_encoder.config.max_position_embeddings)
    except (OSError, ValueError) as error:
        advice = "" if local else f"; {hub.fetch(model.name, model.revision)}"
        raise UserError(f"model.name: {model.name!r} cannot be loaded: {first_line(error)}{advice}") from None
    pipe.scheduler = _scheduler("ddim" if training else model.scheduler, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if model.vae_dtype == "float32":
        pipe.vae.float()
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False).eval()
    if adapter is not None:
        load_adapter(pipe, adapter, model.name)
    if model.attention_slicing:
        pipe.enable_attention_slicing()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.offload and device == "cpu":
        log.warning("model.offload: everything is on the CPU already")
    if model.offload and device != "cpu":
        _offload(pipe, device)
    else:
        pipe.to(device)
    if model.compile and not training:
        _compile(pipe, model)
    return pipe


def load_tokenizer(model: Model):
    """The checkpoint's tokenizer alone: cheap, for counting tokens."""
    local = _check(model, ("tokenizer",))
    from transformers import CLIPTokenizer

    revision = "main" if local else model.revision
    tokenizer = CLIPTokenizer.from_pretrained(model.name, subfolder="tokenizer", revision=revision)
    if tokenizer.model_max_length > WINDOW:
        from transformers import CLIPTextConfig

        config = CLIPTextConfig.from_pretrained(model.name, subfolder="text_encoder", revision=revision)
        _set_window(tokenizer, config.max_position_embeddings)
    return tokenizer


def _set_window(tokenizer, positions: int) -> None:
    """Where a tokenizer names no bound, or one beyond it, the text encoder's number of positions is its window."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


WINDOW = 100_000  # no text encoder takes in so many tokens: a tokenizer that says more says nothing
# Of DDIM's variance. Where a step starts from pure noise and eta is 1, sigma^2 = 1 - a_prev, and diffusers takes the
# root of 1 - a_prev - sigma^2: rounding would make that negative, and the whole image not a number.
BELOW_1 = 1 - 1e-6
INDEX = "diffusers checkpoint: it has no model_index.json"
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
SAFETY_PARTS = ("safety_checker", "feature_extractor")


def _check(model: Model, parts: Sequence[str]) -> bool:
    """Whether the checkpoint is a folder here. Raises UserError if it is no SD 1.x or 2.x or lacks a part."""
    folder = Path(model.name)
    local = folder.is_dir()
    if local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    index = _index(folder / "model_index.json" if local else _fetched_index(model), model.name)
    named = index.get("_class_name")
    if named != "StableDiffusionPipeline":
        raise UserError(
            f"model.name: {model.name!r} is a {named}; what is needed is a StableDiffusionPipeline (SD 1.x or 2.x)"
        )
    for part in parts:
        if not index.get(part, [None])[0]:
            why = "; set model.safety_checker to off" if part in SAFETY_PARTS else ""
            raise UserError(f"model.name: {model.name!r} has no {part}{why}")
        if local:
            _check_part(folder / part, model.variant)
    return local


def _check_part(folder: Path, variant: str) -> None:
    """Raises UserError if a part's folder is missing, or has no weights (of the variant) where it should."""
    name = f"model.name: {str(folder.parent)!r}"
    if not folder.is_dir():
        raise UserError(f"{name} has no folder {folder.name}/, though its model_index.json names it")
    if folder.name in ("tokenizer", "scheduler", "feature_extractor") or variant in (there := _variants(folder)):
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


def _scheduler(name: Scheduler, config: Any) -> Any:
    """diffusers' scheduler of that name for the checkpoint's noise schedule.

    What Stable Diffusion's own configuration says is the default where a checkpoint's leaves it out: latents are not
    clipped to +-1, and the last step ends at the first timestep's noise, not at none.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

    if name == "pndm":
        return PNDMScheduler.from_config(config, skip_prk_steps=True)
    if name == "dpmsolver++":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    if name == "euler":
        return EulerDiscreteScheduler.from_config(config)
    defaults = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler = DDIMScheduler.from_config(config, **{key: config.get(key, value) for key, value in defaults.items()})
    variance = scheduler._get_variance
    scheduler._get_variance = lambda timestep, previous: variance(timestep, previous) * BELOW_1
    return scheduler


def _offload(pipe: Any, device: str) -> None:
    """The UNet goes to the device; what works once per batch rests in main memory."""
    pipe.unet.to(device)
    once = [pipe.text_encoder, pipe.vae.post_quant_conv, pipe.vae.decoder, pipe.safety_checker]
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


def _compile(pipe: Any, model: Model) -> None:
    """Compile the UNet, and take one step with it: where that fails, it stays as it was and one line says so."""
    import torch

    unet, eager = pipe.unet, pipe.unet.forward
    batch = model.batch_size * (2 if model.guidance > 1 else 1)
    side = model.size // pipe.vae_scale_factor
    like = {"device": pipe.device, "dtype": unet.dtype}
    latents = torch.zeros(batch, unet.config.in_channels, side, side, **like)
    text = torch.zeros(batch, pipe.tokenizer.model_max_length, unet.config.cross_attention_dim, **like)
    pipe.scheduler.set_timesteps(model.steps, device=pipe.device)
    unet.forward = torch.compile(eager)
    try:
        with torch.inference_mode():
            unet(latents, pipe.scheduler.timesteps[0], encoder_hidden_states=text, return_dict=False)
    except Exception as error:  # a compiler that is missing, an unknown operation: each has a type of its own
        unet.forward = eager
        log.warning("model.compile: torch.compile failed, drawing goes on without it (%s)", first_line(error))
