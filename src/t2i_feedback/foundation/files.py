"""Files: written whole or not at all, locked, and known by their bytes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

BLOCK = 2**20  # bytes that are read at once


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` in one step when the block ends well; folders above it are made.

    The bytes are on the disk before they have their name, so that nobody ever reads half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")  # nobody else's
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # the name too


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_bytes(path: Path, content: bytes) -> None:
    with whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Sorted by key. Raises ValueError when a number is not finite."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`; it stays when the lock is let go.

    While another process has it, this one waits, and says `waiting` once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def digest(path: Path) -> str:
    """The sha256 of a file, or of the names and bytes of all files below a folder. Large files are not loaded."""
    if path.is_dir():
        return combined({file.relative_to(path).as_posix(): digest(file) for file in below(path)})
    return digest_of([path])


def digest_of(parts: Iterable[Path]) -> str:
    """The sha256 of the bytes of several files, one behind the other. They are read in blocks."""
    hasher = hashlib.sha256()
    for path in parts:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                hasher.update(block)
    return hasher.hexdigest()


def combined(digests: Mapping[str, str]) -> str:
    """One digest of several, by name; their order does not matter."""
    return text_digest(json.dumps(digests, sort_keys=True))


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def below(folder: Path) -> list[Path]:
    """The files of a folder and its folders, without what Python compiles and what is hidden."""
    found = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
    shown = (path for path, names in found if not any(n == "__pycache__" or n.startswith(".") for n in names))
    return sorted(path for path in shown if path.is_file())
