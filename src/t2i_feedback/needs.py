"""What a run needs of the machine and the world, by its parameters: models, keys, the hub."""

import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import CHECKPOINT, fields
from t2i_feedback.mllm.backends import Entry
from t2i_feedback.mllm.backends.local import PACKAGE
from t2i_feedback.params import Params, is_of_hub

PIPELINE = "model_index.json"
_NETWORK = re.compile(r"unet|transformer|vae|text_encoder(_\d)?")
_WHOLE = re.compile(r"(diffusion_pytorch_|open_clip_)?model(\.\w+)?\.safetensors")
HUB_SECONDS = 10  # to wait for the model hub


def used(p: Params) -> dict[str, Entry]:
    """The entries of the catalogue that are asked."""
    vqa = [p.evaluate.vqa_mllm] if p.evaluate.vqa_score else []
    return {name: p.mllms[name] for name in (p.stage1.mllm, p.finetune.judge, p.evaluate.judge, *vqa)}


def in_16_bits(p: Params) -> list[str]:
    """What computes in a number format that processors are slow at."""
    model = ["model"] if p.model.dtype != "float32" and p.model.device != "cpu" else []
    return model + [f"mllms.{name}" for name, entry in used(p).items() if entry.wants_accelerator]


def keys_not_set(p: Params) -> dict[str, str]:
    """Entry -> the environment variable that should hold its key, and holds none."""
    variables = {name: entry.key_variable for name, entry in used(p).items()}
    return {name: one for name, one in variables.items() if one and not os.environ.get(one, "").strip()}


def checkpoints(p: Params) -> dict[str, str]:
    """Key -> the checkpoint that it names, where a run loads it; packages aside."""
    unused = tuple(f"mllms.{name}." for name in p.mllms if name not in used(p))
    named = {key: value for key, value, marks in fields(p) if CHECKPOINT in marks and not key.startswith(unused)}
    return {key: value for key, value in named.items() if value and not value.startswith(PACKAGE)}


def of_hub(p: Params, *sections: str) -> dict[str, str]:
    """Key -> the checkpoint that it names, of those that are not here: of these sections, or of all.

    Raises UserError that lists those that no hub has either.
    """
    named = {key: value for key, value in checkpoints(p).items() if key.startswith(sections or "")}
    wanted = {key: value for key, value in named.items() if not Path(value).exists()}
    nowhere = [f"{key}: there is no folder {value}" for key, value in wanted.items() if not is_of_hub(value)]
    if nowhere:
        raise UserError(f"{'; '.join(nowhere)}, and a hub model has no such name")
    return wanted


def to_be_fetched(p: Params, *sections: str) -> dict[str, str]:
    """The hub's models that a run loads and the hub's cache lacks -> the command that fetches each.

    Raises UserError as `of_hub`.
    """
    found = {}
    for key, model in of_hub(p, *sections).items():
        revision = _revision(p, key)
        if not cached(model, PIPELINE if key == "model.name" else "config.json", revision):
            found[model] = f"hf download {model}" + (f" --revision {revision}" if revision != "main" else "")
    return found


def _revision(p: Params, key: str) -> str:
    """Of the model that a key names."""
    if key == "model.name":
        return p.model.revision
    entry = next((one for name, one in p.mllms.items() if key.startswith(f"mllms.{name}.")), None)
    return getattr(entry, "revision", "main")


def cached(model: str, file: str, revision: str) -> bool:
    """Whether the hub's cache has the model at that revision: that file, and all the weights that belong to it.

    `file`: a pipeline's model_index.json, whose networks lie in folders, or a model's config.json.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, file, revision=revision)
    if not isinstance(found, str):
        return False
    folder, parts = Path(found).parent, [""]
    if file == PIPELINE:
        index = json.loads(Path(found).read_text(encoding="utf-8"))
        parts = [part for part, named in index.items() if _NETWORK.fullmatch(part) and named and named[0]]
    return all(_has_weights(folder / part) for part in parts)


def _has_weights(folder: Path) -> bool:
    """In all files that an index lists, or in one that none lists and that is no piece; of whichever variant."""
    there = {file.name for file in folder.glob("*.safetensors")}
    indices = [json.loads(one.read_text(encoding="utf-8")) for one in folder.glob("*.safetensors*.index*.json")]
    listed = [set(index["weight_map"].values()) for index in indices]
    alone = {name for name in there.difference(*listed) if _WHOLE.fullmatch(name)}
    return bool(alone) or any(there >= pieces for pieces in listed)


def unreachable(p: Params, *sections: str, seconds: float = HUB_SECONDS) -> tuple[str, str]:
    """What is `to_be_fetched` while the hub does not answer, and the remedy; two empty texts where all can be had."""
    absent = to_be_fetched(p, *sections)
    if not absent or hub_answers(seconds):
        return "", ""
    what = f"not in the hub's cache, and the hub cannot be reached: {', '.join(absent)}"
    return what, f"with internet: {' && '.join(absent.values())}"


def hub_answers(seconds: float = HUB_SECONDS) -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True  # it is there, whatever it thinks of the question
    except (OSError, ValueError):
        return False
    return True
