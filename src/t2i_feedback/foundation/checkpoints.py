"""The checkpoints on this machine that parameters name: which they are, wherever they lie, and what bytes they have."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from t2i_feedback.foundation import files, paths
from t2i_feedback.foundation.params import CHECKPOINT, ENTRY, at, fields

ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"  # in an adapter's folder, where diffusers and MLflow look

ELSEWHERE = "not a folder or file of this machine"  # a hub's model, named by its revision; or none at all


def digests(values: BaseModel, *keys: str) -> dict[str, str]:
    """Key -> digest of the checkpoint that it names: itself, or by way of an entry of the catalogue `mllms`. Of these
    keys, or of all."""
    named = {dotted: value for dotted, value, marks in fields(values) if CHECKPOINT in marks}
    found = {dotted: value for dotted, value in named.items() if not dotted.startswith("mllms.")}
    for dotted, entry, marks in fields(values):
        if ENTRY in marks:
            found[dotted] = next((value for name, value in named.items() if name.startswith(f"mllms.{entry}.")), None)
    return {dotted: _digest(value) for dotted, value in found.items() if dotted in keys or not keys}


def noted(found: Mapping[str, str]) -> dict[str, str]:
    """What stage `check` leaves: file name -> content; one for each key with its digest, and one that never changes."""
    return {paths.IN_ORDER.name: "params.yaml is in order\n", **found}


def digest(path: Path) -> str:
    """The sha256 of a file, or of a folder's files below it.

    A file is read once: afterwards it is known by what the file system says of it, which is remembered in the cache.
    An archive may set the time when a file was written, and never the one when it was changed (ctime).
    """
    if path.is_dir():
        return files.combined({one.relative_to(path).as_posix(): digest(one) for one in files.below(path)})
    memory = paths.cache() / "digests" / f"{files.text_digest(str(path.resolve()))}.json"
    state = path.stat()
    now = {"size": state.st_size, "written": state.st_mtime_ns, "changed": state.st_ctime_ns, "inode": state.st_ino}
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if {key: at(known, key) for key in now} != now:
        known = now | {"sha256": files.digest(path)}
        files.write_json(memory, known)
    return known["sha256"]


def _digest(named: str | None) -> str:
    path = Path(named) if named else None
    return digest(path) if path and path.exists() else ELSEWHERE
