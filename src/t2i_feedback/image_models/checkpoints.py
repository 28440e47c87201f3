"""Before anything is loaded: which family a checkpoint is of, and whether its parts are there."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import hub
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.image_models.section import Model

if TYPE_CHECKING:
    from t2i_feedback.image_models.base import ImageModel

INDEX = "diffusers checkpoint: it has no model_index.json"


def family_of(model: Model) -> tuple[bool, dict[str, Any], "type[ImageModel]"]:
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


FEW_STEPS = ("LCMScheduler", "TCDScheduler")
FEW_STEPS_NAMES = re.compile(r"turbo|lightning|lcm|schnell|hyper|distill", re.IGNORECASE)


def check_many_steps(model: Model, index: dict[str, Any], local: bool) -> None:
    """Raises UserError if the checkpoint was distilled to few steps, as its parts or its name on the hub say."""
    scheduler = index["scheduler"][1]
    named = not local and FEW_STEPS_NAMES.search(model.name.rpartition("/")[2])
    if scheduler in FEW_STEPS or index.get("is_distilled") or named:
        raise UserError(
            f"model.name: {model.name!r} is distilled to few steps, without the noise and guidance that fine-tuning "
            "needs: each of its steps is a jump, whose probability says little. Fine-tune the model that it was "
            "distilled from"
        )


def check_has(model: Model, index: dict[str, Any], part: str, local: bool) -> None:
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
