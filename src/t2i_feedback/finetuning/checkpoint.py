"""Checkpoints of a fine-tuning run: complete or absent, and enough of them to go on as if nothing had happened.

Every random draw of the trainer is seeded by (seed, epoch, use), in every process, so adapter, optimiser, what the
feedback has learnt and the epoch number are the whole state: there is no generator to save, in however many processes.
"""

import io
import os
import shutil
from pathlib import Path

import torch

from t2i_feedback.foundation.errors import UserError

State = dict[str, torch.Tensor]


def save(
    folder: Path,
    epoch: int,
    parameters: list[torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    feedback: State,
    before: list[torch.Tensor],
) -> None:
    """Write checkpoint-{epoch}: the state after that many epochs. `before`: the parameters before the last update."""
    target = folder / f"checkpoint-{epoch:05d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {
        "epoch": epoch,
        "parameters": [p.detach().cpu() for p in parameters],
        "optimiser": optimiser.state_dict(),
        "feedback": feedback,
        "before": [tensor.cpu() for tensor in before],
    }
    packed = io.BytesIO()  # torch writing to a full disk raises something that is not an OSError
    torch.save(state, packed)
    with (partial / "state.pt").open("wb") as file:
        file.write(packed.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def load_latest(
    folder: Path, parameters: list[torch.nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[int, State, list[torch.Tensor]]:
    """Restore the newest checkpoint in place; return how many epochs are done (0 without one), feedback's state, and
    the parameters before the last update.

    Raises UserError if it is of another adapter.
    """
    found = sorted(folder.glob("checkpoint-*"))
    if not found:
        return 0, {}, []
    state = torch.load(found[-1] / "state.pt", weights_only=True, map_location="cpu")
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (state["parameters"], parameters)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{found[-1]} is of another adapter ({len(shapes[0])} tensors, here {len(shapes[1])}, or other shapes): "
            f"finetune.lora_rank, lora_targets or model.name have changed; delete {folder}"
        )
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.data.copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["epoch"]), state["feedback"], state["before"]


def keep_last(folder: Path, count: int) -> None:
    for old in sorted(folder.glob("checkpoint-*"))[:-count]:
        shutil.rmtree(old)
