"""The processes of one launch (accelerate, torchrun): who is this one, what is its share, how do results come together.

Every process runs the same stage on the same inputs. Work is divided by position, each process does its share, and
`all_reduce` gives every process the whole. Only the main process (rank 0) writes what the stage leaves behind. Nothing
is pickled: tensors are all that travels. A run of one process never touches torch.distributed.

The launcher's own variables say who is who: RANK, WORLD_SIZE, LOCAL_RANK. A cluster may set them where no launcher of
ours has started this process: then they mean nothing here.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from t2i_feedback.foundation.errors import UserError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

STARTED = {"T2I_LAUNCH", "TORCHELASTIC_RUN_ID"}  # variables of which a launcher sets one
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(days=1)  # for another's share; a process that has ended is noticed at once


class PeerExited(UserError):
    """Another process of the launch has ended. Why, that one says."""


def launched() -> bool:
    """Whether a launcher started this process as one of several: T2I_LAUNCHER's, or torchrun by hand."""
    return bool(STARTED & os.environ.keys())


def rank() -> int:
    return int(os.environ.get("RANK", "0")) if launched() else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def is_main() -> bool:
    return rank() == 0


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """What this process is to do: every world-th item, from the rank-th on."""
    return items[rank() :: world_size()]


def all_reduce(tensor: "torch.Tensor") -> "torch.Tensor":
    """The sum over all processes, in place and in every one. Where a process did nothing it holds zeros.

    Raises PeerExited when one of them is gone.
    """
    if world_size() > 1:
        with _together() as dist:
            dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: "torch.Tensor") -> "torch.Tensor":
    """The main process's tensor, in place and in every one; all have the same shape and type.

    Raises PeerExited when one of them is gone.
    """
    if world_size() > 1:
        with _together() as dist:
            dist.broadcast(tensor, src=0)
    return tensor


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch

        all_reduce(torch.zeros(1))  # on the CPU, where torch's own barrier may take a device


def all_gather(own: bytes) -> list[bytes]:
    """What every process has brought, by rank, in every one."""
    if world_size() == 1:
        return [own]
    import torch

    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    with _together() as dist:
        dist.all_gather(sizes, torch.tensor([len(own)]))
    longest = max(int(size) for size in sizes)
    padded = torch.frombuffer(bytearray(own.ljust(max(1, longest), b"\0")), dtype=torch.uint8)
    everything = [torch.zeros_like(padded) for _ in sizes]
    with _together() as dist:
        dist.all_gather(everything, padded)
    return [one[: int(size)].numpy().tobytes() for one, size in zip(everything, sizes, strict=True)]


@contextmanager
def _together() -> Iterator[Any]:
    """torch.distributed, ready to be spoken through. Raises PeerExited when another process is gone."""
    import torch.distributed

    try:
        _initialise()
        yield torch.distributed
    except RuntimeError as error:  # gloo's and NCCL's own are of this class
        raise PeerExited(f"another process has ended ({str(error).splitlines()[0][:160]})") from None


def use_own_device() -> None:
    """Show this process one CUDA device alone, that of its LOCAL_RANK: to all libraries and threads it is `cuda`.

    To be called before CUDA is used. Raises UserError when the machine has fewer devices than processes.
    """
    if world_size() == 1:
        return
    import torch

    count, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if count == 0:
        return
    if place >= count:
        raise UserError(
            f"T2I_LAUNCHER: process {place + 1} of this machine has no CUDA device, since it sees {count}; start as "
            "many processes as there are devices, or set CUDA_VISIBLE_DEVICES to nothing to compute on the CPU"
        )
    devices = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.split(",")[place]


def shut_down() -> None:
    """Part from the others at the end, so that nobody's end looks like a failure to them."""
    if world_size() > 1:
        import torch.distributed

        barrier()
        torch.distributed.destroy_process_group()


def _initialise() -> None:
    """Meet the others, the first time that there is something to say."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
