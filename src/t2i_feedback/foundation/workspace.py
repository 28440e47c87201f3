"""Where unfinished work lives and how finished work becomes a stage's output.

A stage works in a folder under `.cache/` that is named by everything its result depends on, so an interrupted run is
taken up where it stopped and a changed one starts afresh. `publish` moves the finished folder into place in one step.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from t2i_feedback.foundation import distributed, paths
from t2i_feedback.foundation.errors import UserError

Setting = BaseModel | str | int | float | None
FREE_BYTES_NEEDED = 200 * 2**20  # a stage does not start with less


def digest(parameters: Sequence[Setting], inputs: Iterable[Path]) -> str:
    """A name for work: hash of the parameters, of the input files' bytes and of this package's sources."""
    package = Path(__file__).parent
    sources = sorted([*package.rglob("*.py"), *package.rglob("*.txt")])
    hasher = hashlib.sha256()
    for value in parameters:
        text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
        hasher.update(text.encode() + b"\0")
    for path in [*sources, *inputs]:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            hasher.update(str(file.relative_to(package) if file in sources else file).encode() + b"\0")
            hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()[:16]


def weights(*names: str) -> list[Path]:
    """Those of the models that are folders here: inputs whose bytes count. Hub models are named by their revision."""
    return [Path(name) for name in dict.fromkeys(names) if Path(name).is_dir()]


@contextmanager
def partial(stage: str, name: str) -> Iterator[Path]:
    """The folder of a stage's unfinished work, held by one launch at a time; removed when the stage has succeeded.

    The first process of the launch holds and removes it; the others enter and leave together with it.

    Raises UserError if another process holds it or the disk is nearly full.
    """
    folder = paths.cache() / "partial" / f"{stage}-{name}"
    if not distributed.is_main():
        distributed.barrier()
        yield folder
        distributed.barrier()
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_NEEDED:
        raise UserError(
            f"only {free / 2**20:.0f} MiB are free on the disk of {folder}; {stage} wants "
            f"{FREE_BYTES_NEEDED / 2**20:.0f}: free some, `make clean` deletes partial work"
        )
    lock_path = folder.with_suffix(".lock")
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{stage} is already running with these parameters (it holds {lock_path}).") from None
        distributed.barrier()
        yield folder
        distributed.barrier()
        shutil.rmtree(folder)
        lock_path.unlink(missing_ok=True)


def publish(finished: Path, out: Path) -> None:
    """Make `finished` the stage's output: readers see the old one or the whole new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        os.rename(finished, staged)
    except OSError:  # another file system, as in `dvc exp run --temp` on some set-ups
        shutil.copytree(finished, staged)
        shutil.rmtree(finished)
    shutil.rmtree(out, ignore_errors=True)
    os.rename(staged, out)
