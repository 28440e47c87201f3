"""The processes of one launch (accelerate, torchrun): who is this one, what is its share, how do results come together.

Every process runs the same stage on the same inputs. Work is divided by position, each process does its share, and
`combine` gives every process the whole. Only the first process writes what the stage leaves behind. Nothing is pickled:
tensors are all that travels. A run of one process never touches torch.distributed.

The launcher's own variables say who is who: RANK, WORLD_SIZE, LOCAL_RANK.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    return rank() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """What this process is to do: every world-th item, from the rank-th on."""
    return items[rank() :: world()]


def combine(tensor: "torch.Tensor") -> "torch.Tensor":
    """The sum over all processes, in place and in every one. Where a process did nothing it holds zeros."""
    if world() > 1:
        import torch.distributed

        _join()
        torch.distributed.all_reduce(tensor)
    return tensor


def _join() -> None:
    """Meet the others, the first time that there is something to say."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
