"""Load a text-to-image checkpoint of any family that there is, with or without an adapter."""

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import hub
from t2i_feedback.foundation.device import pick
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.image_models import checkpoints
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
    local, index, family = checkpoints.family_of(model)
    safety = family.safety_parts if model.safety_checker != "off" else ()
    if model.safety_checker != "off" and not safety:
        raise UserError(
            f"model.safety_checker: a {family.pipeline} has no safety checker; set model.safety_checker to off"
        )
    for part in (*family.parts, *safety):
        checkpoints.check_has(model, index, part, local)
    if training:
        checkpoints.check_many_steps(model, index, local)
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
    made.check_settings()
    pipe.scheduler = _scheduler(family.rollouts if training else scheduler, family, pipe.scheduler.config, training)
    pipe.set_progress_bar_config(disable=True)
    if model.vae_dtype == "float32":
        pipe.vae.float()
    for module in (made.network, pipe.vae, *text_encoders(pipe)):
        module.requires_grad_(False).eval()
    if adapter is not None:
        made.load_adapter(adapter)
    if model.attention_slicing and not hasattr(made.network, "set_attention_slice"):
        log.warning("model.attention_slicing: a %s cannot slice its attention", type(made.network).__name__)
    elif model.attention_slicing:
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
    local, index, family = checkpoints.family_of(model)
    part = next((part for part in family.tokenizers if index.get(part, [None])[0]), family.tokenizers[-1])
    checkpoints.check_has(model, index, part, local)
    import transformers

    revision = "main" if local else model.revision
    tokenizer = getattr(transformers, index[part][1]).from_pretrained(model.name, subfolder=part, revision=revision)
    if index[part][1].startswith("T5"):
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
        encoder = getattr(pipe, f"text_encoder{number}", None)
        if encoder is not None and hasattr(encoder.config, "max_position_embeddings"):  # a T5 has no such bound
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


# What decides a checkpoint's noise schedule, with the value that says nothing. A scheduler that does not know it drops
# it in silence.
DECISIVE = {
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "sigma_data": None,
    "shift": None,
}


def _scheduler(name: str, family: "type[ImageModel]", config: Any, training: bool) -> Any:
    """The family's scheduler of that name. Raises UserError if it does not keep the checkpoint's noise schedule."""

    def knows(scheduler: Any, key: str) -> bool:
        return key in inspect.signature(type(scheduler)).parameters

    made = family.scheduler(name, config)
    for key, nothing in DECISIVE.items():
        if config.get(key) not in (None, nothing) and not knows(made, key):
            others = [other for other in family.schedulers if knows(family.scheduler(other, config), key)]
            if training:
                raise UserError(
                    f"model.name: a checkpoint with {key} cannot be fine-tuned: rollouts take {name}, which would drop "
                    "it from the noise schedule"
                )
            keeps = f"set {' or '.join(others)}" if others else "no other one of its family keeps it"
            raise UserError(f"model.scheduler: {name} would drop {key} of the checkpoint's noise schedule; {keeps}")
    return made


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


WINDOW = 100_000  # no text encoder takes in so many tokens: a tokenizer that says more says nothing


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
    batch = model.batch_size * (2 if made.classifier_free and model.guidance > 1 else 1)
    latents = torch.zeros(batch, *made.latent_shape(), device=made.device, dtype=made.dtype)
    text = made.null().expand(batch)
    scheduler = made.pipe.scheduler
    shifted = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}  # compiling is the same by any
    scheduler.set_timesteps(model.steps, device=made.device, **shifted)
    network.forward = torch.compile(eager)
    try:
        with torch.inference_mode():
            made.denoise(latents, scheduler.timesteps[0].expand(batch), text)
    except Exception as error:  # a compiler that is missing, an unknown operation: each has a type of its own
        network.forward = eager
        log.warning("model.compile: torch.compile failed, drawing goes on without it (%s)", first_line(error))
