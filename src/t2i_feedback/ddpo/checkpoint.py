"""Checkpoints of a fine-tuning run: complete or absent, and enough of them to go on as if nothing had happened.

Every random draw of the trainer is seeded by (seed, epoch), so adapter, optimiser and epoch number are the whole state.
"""

import io
import os
import shutil
from pathlib import Path

import torch


def save(folder: Path, epoch: int, parameters: list[torch.nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    """Write checkpoint-{epoch}: the state after that many epochs."""
    target = folder / f"checkpoint-{epoch:05d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {"epoch": epoch, "parameters": [p.detach().cpu() for p in parameters], "optimiser": optimiser.state_dict()}
    packed = io.BytesIO()  # torch writing to a full disk raises something that is not an OSError
    torch.save(state, packed)
    with (partial / "state.pt").open("wb") as file:
        file.write(packed.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def load_latest(folder: Path, parameters: list[torch.nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    """Restore the newest checkpoint in place; return how many epochs are done (0 without a checkpoint)."""
    found = sorted(folder.glob("checkpoint-*"))
    if not found:
        return 0
    state = torch.load(found[-1] / "state.pt", weights_only=True, map_location="cpu")
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.data.copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["epoch"])


def keep_last(folder: Path, count: int) -> None:
    for old in sorted(folder.glob("checkpoint-*"))[:-count]:
        shutil.rmtree(old)
