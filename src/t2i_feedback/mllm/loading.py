"""Load a checkpoint: its processor (of a text model: its tokenizer) and its model, onto a device."""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import checkpoint
from t2i_feedback.mllm.backends.local import LocalEntry


def load(name: str, entry: LocalEntry, revision: str, device: str) -> tuple[Any, Any]:
    """Processor and model, in evaluation mode. Raises UserError when files are missing or do not fit the class."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    where, files = _where(name, entry, revision)
    quantised: dict[str, Any] = {}
    if entry.quantisation != "none":
        quantised = {"quantization_config": _quantisation(name, entry, device), "device_map": device}
    try:
        sees = _sees(AutoConfig.from_pretrained(where, **files))
        reader, kind = (AutoProcessor, AutoModelForImageTextToText) if sees else (AutoTokenizer, AutoModelForCausalLM)
        processor = reader.from_pretrained(where, **files)
        model: Any = kind.from_pretrained(
            where, dtype=getattr(torch, entry.dtype), use_safetensors=True, **quantised, **files
        )
    except OSError as error:
        raise checkpoint.missing(name, entry, error) from None
    except (ValueError, ImportError) as error:
        raise UserError(f"mllms.{name}: {entry.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if not getattr(processor, "chat_template", None):  # some have it in tokenizer_config.json alone
        processor.chat_template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    if not processor.chat_template:
        raise UserError(f"mllms.{name}: {entry.model} has no chat template, so nothing can be asked in its own words.")
    if not quantised:
        model.to(device)
    return processor, model.eval()


def _where(name: str, entry: LocalEntry, revision: str) -> tuple[str, dict[str, Any]]:
    """The folder or hub id, and how to read it."""
    found = checkpoint.place(name, entry)
    trust = {"trust_remote_code": entry.trust_remote_code}
    if found is None:
        return entry.model, {"revision": revision, **trust}
    if found.is_file():
        if find_spec("gguf") is None:
            raise UserError(f"mllms.{name}: {found.name} needs the package gguf: `pip install gguf`.")
        return str(found.parent), {"gguf_file": found.name, "local_files_only": True, **trust}
    return str(found), {"local_files_only": True, **trust}


def _sees(config: Any) -> bool:
    """Whether a checkpoint takes images."""
    own = getattr(config, "auto_map", None) or {}  # of a checkpoint with code of its own
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or "AutoModelForImageTextToText" in own


def _quantisation(name: str, entry: LocalEntry, device: str) -> Any:
    from transformers import BitsAndBytesConfig

    if device != "cuda" or find_spec("bitsandbytes") is None:
        raise UserError(
            f"mllms.{name}.quantisation: {entry.quantisation} needs a CUDA device and the package bitsandbytes; "
            "use quantisation: none."
        )
    return BitsAndBytesConfig(load_in_8bit=entry.quantisation == "8bit", load_in_4bit=entry.quantisation == "4bit")
