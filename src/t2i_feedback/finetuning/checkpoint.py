"""Checkpoints of a fine-tuning run: written whole, and enough of them to go on as if nothing had happened.

Every random draw of the trainer has a seed of its own (`foundation.seeds`), so the adapter, its average, the optimiser,
what the scorer has learnt and the epoch are the whole state: no generator needs to be saved, in however many processes.
"""

import io
import shutil
import sys
from pathlib import Path

import torch

from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError

State = dict[str, torch.Tensor]


def save(
    folder: Path,
    epoch: int,
    parameters: list[torch.Tensor],
    optimiser: torch.optim.Optimizer,
    scorer: State,
    before: list[torch.Tensor],
) -> None:
    """Write checkpoint-{epoch}: the state after that many epochs. `before`: the parameters before the last update."""
    state = {
        "epoch": epoch,
        "parameters": [p.detach().cpu() for p in parameters],
        "optimiser": optimiser.state_dict(),
        "feedback": scorer,
        "before": [tensor.cpu() for tensor in before],
    }
    packed = io.BytesIO()  # torch writing to a full disk raises something that is not an OSError
    torch.save(state, packed)
    files.write_bytes(folder / f"checkpoint-{epoch:05d}" / "state.pt", packed.getvalue())


def load_latest(
    folder: Path, parameters: list[torch.Tensor], optimiser: torch.optim.Optimizer
) -> tuple[int, State, list[torch.Tensor]]:
    """Restore the newest checkpoint in place; return how many epochs are done (0 without one), the scorer's state, and
    the parameters before the last update.

    Raises UserError if it is of another adapter.
    """
    found, state = sorted(folder.glob("checkpoint-*/state.pt")), None
    while found and (state := _read(found[-1])) is None:
        print(f"{found.pop()} is damaged: the one before it is taken up", file=sys.stderr)
    if state is None:
        return 0, {}, []
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (state["parameters"], parameters)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{found[-1].parent} is of another adapter ({len(shapes[0])} tensors, here {len(shapes[1])}, or other "
            f"shapes): finetune.lora_rank, lora_targets or model.name have changed; delete {folder}"
        )
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.data.copy_(value)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["epoch"]), state["feedback"], state["before"]


def _read(path: Path) -> dict | None:
    """A checkpoint; None where the file was cut short or changed."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # whatever the bytes of a damaged file make torch raise
        return None


def keep_last(folder: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints."""
    for old in sorted(folder.glob("checkpoint-*"))[:-count]:
        shutil.rmtree(old)
