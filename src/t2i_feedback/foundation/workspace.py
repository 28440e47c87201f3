"""Where unfinished work lives and how finished work becomes a stage's output.

A stage works in a folder under `.cache/` that is named by everything its result depends on: what its entry of dvc.yaml
lists, and the bytes of the checkpoints that its parameters name. So an interrupted run is taken up where it stopped and
a changed one starts afresh. `publish` moves the finished folder into place in one step.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from t2i_feedback.foundation import checkpoints, distributed, files, params, paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.pipeline import Stage

FREE_BYTES_NEEDED = 200 * 2**20  # a stage does not start with less


def key(stage: Stage, values: BaseModel) -> str:
    """A name for the stage's work: hash of its inputs' bytes, of the parameters that it lists and that decide a result,
    and of the checkpoints that they name. `values` holds at least these parameters.

    Raises UserError when an input is missing.
    """

    try:
        inputs = {dep: files.digest(Path(dep)) for dep in stage.deps}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro` to make it") from None
    weights = _listed(stage, checkpoints.digests(values))
    described = {"inputs": inputs, "settings": _listed(stage, params.decisive(values)), "checkpoints": weights}
    return files.text_digest(TypeAdapter(dict).dump_json(described).decode())[:16]


def _listed(stage: Stage, found: Mapping[str, Any]) -> dict[str, Any]:
    """Those whose dotted keys are below one that the stage lists."""
    return {
        dotted: value
        for dotted, value in found.items()
        if any(f"{dotted}.".startswith(f"{one}.") for one in stage.params)
    }


def check_unedited(stage: Stage, values: BaseModel) -> None:
    """Raises UserError when a parameter of the stage's that decides a result, or its code, is another one by now.

    DVC notes what stands there when a stage ends, and would take the result for that of the new values ever after.
    """
    before, now = (_listed(stage, params.decisive(one)) for one in (values, params.load(type(values))))
    before, now = {**before, **stage.begun_with}, {**now, **stage.sources()}
    if changed := [name for name in before | now if before.get(name) != now.get(name)]:
        raise UserError(
            f"{', '.join(changed)} changed while this ran, so that nothing was made of it. Run the same command again; "
            "put back what stood there, and work that was kept is taken up"
        )


@contextmanager
def unfinished(stage: Stage, values: BaseModel) -> Iterator[Path]:
    """The folder of a stage's unfinished work, held by one launch at a time; removed when the stage has succeeded.

    The main process of the launch names, holds and removes it; the others enter and leave together with it.

    While another launch holds it, this one waits. Raises UserError if an input is missing or the disk is nearly full.
    """
    named = distributed.all_gather(key(stage, values).encode() if distributed.is_main() else b"")[0].decode()
    with _held(stage, paths.cache() / "partial" / f"{stage.name}-{named}") as folder:
        yield folder


@contextmanager
def scratch(stage: Stage) -> Iterator[Path]:
    """An empty folder for the work of a stage that takes nothing up. Raises UserError as `unfinished` does."""
    with _held(stage, paths.cache() / "partial" / stage.name) as folder:
        shutil.rmtree(folder)
        folder.mkdir()
        yield folder


@contextmanager
def _held(stage: Stage, folder: Path) -> Iterator[Path]:
    if not distributed.is_main():
        distributed.barrier()
        yield folder
        distributed.barrier()
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < FREE_BYTES_NEEDED:
        raise UserError(
            f"only {free / 2**20:.0f} MiB are free on the disk of {folder}; {stage.name} wants "
            f"{FREE_BYTES_NEEDED / 2**20:.0f}: free some, `make clean` deletes partial work"
        )
    waiting = f"{stage.name} is already running with these parameters: waiting until that run has ended"
    with files.locked(paths.cache() / "locks" / f"{folder.name}.lock", waiting):
        folder.mkdir(parents=True, exist_ok=True)
        for half_written in folder.rglob(".*.partial"):  # when its process was killed
            half_written.unlink()
        distributed.barrier()
        yield folder
        distributed.barrier()
        shutil.rmtree(folder)


def publish(stage: Stage, values: BaseModel, finished: Path, out: Path) -> None:
    """Make `finished` the stage's output. Readers see the old one or the whole new one, or for a moment none.

    Raises UserError when what the stage depends on was edited while it ran; `finished` stays.
    """
    check_unedited(stage, values)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged, old = (out.with_name(f".{out.name}.{word}.partial") for word in ("new", "old"))
    shutil.rmtree(staged, ignore_errors=True)
    try:
        os.rename(finished, staged)
    except OSError:  # another file system, as in `dvc exp run --temp` on some set-ups
        shutil.copytree(finished, staged)
        shutil.rmtree(finished)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(staged, out)
    shutil.rmtree(old, ignore_errors=True)
