"""Do tensors that travel between two cards arrive as they are? As its own program, one of the processes that travel.

foundation.distributed speaks NCCL for tensors on a GPU, and gloo for those in main memory; here torchrun starts a
process for each card, as in docs/scaling.md.
"""

import json
import os
import subprocess
import sys
import time

import torch

from t2i_feedback.foundation import distributed, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.gpu_check.results import LEFT_OUT, Phases

NUMBERS = {"cuda": 2**26, "cpu": 2**10}  # that travel


def exchange(device: str) -> Phases:
    """Raises UserError where there is but one card."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    if count < 2:
        raise UserError(f"{LEFT_OUT}: it needs two cards, and there is one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *launcher, "-m", __name__, device]
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | hidden)
    if ended.returncode:
        raise UserError(f"torchrun ended with status {ended.returncode}")
    yield "exchange", json.loads(ended.stdout.splitlines()[-1])


def main(device: str) -> None:
    """One of the processes; the first prints what was found."""
    rank, world = distributed.rank(), distributed.world_size()
    count = torch.arange(NUMBERS[device], device=device) % 1000
    told = distributed.broadcast((count * (rank + 1)).float())
    summed = distributed.all_reduce((count * (rank + 1)).float())
    start = time.perf_counter()
    float(distributed.all_reduce(torch.ones_like(summed)).sum())
    seconds = time.perf_counter() - start
    wrong = torch.tensor(
        [not told.equal(count.float()), not summed.equal((count * (world * (world + 1) // 2)).float())]
    )
    wrong = distributed.all_reduce(wrong.int().to(device))
    found = {"processes": float(world), "broadcast_is_equal": not int(wrong[0]), "sum_is_equal": not int(wrong[1])}
    spoken = "nccl" if device == "cuda" else "gloo"
    print(json.dumps({**found, "through": spoken, "gb_per_second": summed.nbytes / 1e9 / seconds}))


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
