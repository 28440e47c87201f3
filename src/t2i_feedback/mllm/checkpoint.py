"""Where a local model's files are and which they are, without loading them."""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

from t2i_feedback.errors import UserError
from t2i_feedback.params import LocalEntry

KINDS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")  # what decides a model's answers


def revision(name: str, entry: LocalEntry) -> str:
    """The commit of a hub checkpoint, fetching its config if need be; of a folder, the digest of its files.

    Raises UserError, with the way to fetch it, when the checkpoint is neither a folder nor to be had from the hub.
    """
    folder = Path(entry.model)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in KINDS)
        if not any(path.suffix == ".safetensors" for path in files):
            raise UserError(f"mllms.{name}: {folder} holds no *.safetensors; is the checkpoint complete?")
        hashes = [(path.name, _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in files]
        return hashlib.sha256(repr(hashes).encode()).hexdigest()
    return _hub_commit(name, entry)


def _hub_commit(name: str, entry: LocalEntry) -> str:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        found = try_to_load_from_cache(entry.model, "config.json", revision=entry.revision)
        if not isinstance(found, str):
            found = hf_hub_download(entry.model, "config.json", revision=entry.revision)
    except HFValidationError:
        raise UserError(f"mllms.{name}: there is no folder {entry.model}, and a hub model has no such name.") from None
    except (OSError, ValueError) as error:
        raise missing(name, entry, constants.HF_HUB_CACHE, error) from None
    return Path(found).parent.name


def missing(name: str, entry: LocalEntry, cache: str, error: Exception) -> UserError:
    """The one line about a checkpoint that cannot be had."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return UserError(
        f"mllms.{name}: {entry.model} (revision {entry.revision}) is not in the hub's cache {cache} and could not be "
        f"fetched ({reason}). Where the hub can be reached: `hf download {entry.model} --revision {entry.revision}`; "
        "copy the cache here if this machine cannot."
    )


@lru_cache(maxsize=256)
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
