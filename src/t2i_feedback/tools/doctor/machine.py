"""Checks of the machine: cores, memory, disk, clock, GPUs with their driver and torch."""

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from t2i_feedback import needs
from t2i_feedback.foundation import device, paths
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.foundation.workspace import FREE_BYTES_NEEDED
from t2i_feedback.params import Params
from t2i_feedback.tools.doctor.checks import Findings, check, ok, problem, warning
from t2i_feedback.tools.doctor.repository import cache_of_dvc
from t2i_feedback.tools.estimate import costs, figures

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
SMI = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's; AMD's, which torch calls cuda too
SMALLER = "smaller models, quantisation or a served judge (docs/judges.md)"
FREE_IT = "free some: make clean, dvc gc --workspace"


@dataclass(frozen=True)
class Gpu:
    name: str
    gb: float  # 0 where the driver does not say, as of memory that it shares with the processor
    free_gb: float
    driver: str


@dataclass(frozen=True)
class Torch:
    version: str
    cuda: str | None  # that it was built for; None = a build for processors
    works: bool  # on a CUDA device
    why_not: str = ""


def memory_gb() -> tuple[float, float]:
    """Of all memory that this process may have, and of what is free of it now."""
    import psutil

    found = psutil.virtual_memory()
    limits = [Path(one).read_text().strip() for one in LIMITS if Path(one).is_file()]
    total = min([found.total, *(int(one) for one in limits if one.isdigit())])
    return total / 1e9, min(found.available, total) / 1e9


def gpus() -> list[Gpu]:
    """NVIDIA's, as their driver lists them. Raises UserError with what it says where it does not work."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        asked = subprocess.run(SMI, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        raise UserError("nvidia-smi does not answer") from None
    if asked.returncode:
        raise UserError(first_line(Exception(asked.stdout.strip() or asked.stderr)))
    rows = [line.split(", ") for line in asked.stdout.splitlines() if line.count(", ") == 3]
    return [Gpu(name, _gb(total), _gb(free), driver) for name, total, free, driver in rows]


def _gb(mebibytes: str) -> float:
    return float(mebibytes) * 2**20 / 1e9 if mebibytes.isdigit() else 0.0


def torch_here() -> Torch:
    import torch

    try:
        if works := torch.cuda.is_available():
            (torch.zeros(1, device="cuda") + 1).item()  # a GPU may be seen that this build has no code for
    except RuntimeError as error:
        return Torch(torch.__version__, torch.version.cuda, False, first_line(error))
    return Torch(torch.__version__, torch.version.cuda, works)


def takes(p: Params) -> tuple[float, float]:
    """GB of disk and of memory that a run takes; 0 where no figure says."""
    try:
        return costs.room(p, figures.read())
    except UserError:
        return 0, 0


def said_of(what: str, gb: float) -> str:
    return f"{what} take {gb:.1f} GB" if gb else f"what {what} take is not known"


@check()
def cores() -> Findings:
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = f"{platform.system()}, {mine} cores, load {os.getloadavg()[0]:.1f}"
    if os.getloadavg()[0] > mine + 1:
        return warning(f"{said}: others compute here, and a run lasts longer", "end what is not needed")
    return ok(said)


@check(quick="tells")
def memory(p: Params) -> Findings:
    """Of the processor; what a GPU has is another check's."""
    total, free = memory_gb()
    said = f"{total:.1f} GB of memory, {free:.1f} free"
    if p.model.device != "cpu" and shutil.which("nvidia-smi"):
        return ok(said)
    _, needed = takes(p)
    said += f"; {said_of('the models of fine-tuning', needed)}"
    if total < needed:
        return problem(said, SMALLER)
    return warning(said, "end other programs first") if free < needed else ok(said)


@check(quick="stops")
def disk() -> Findings:
    for place in filter(Path.exists, (Path(), cache_of_dvc(), paths.cache())):
        if (free := shutil.disk_usage(place).free) < FREE_BYTES_NEEDED:
            least = FREE_BYTES_NEEDED / 2**20
            return problem(f"{free / 2**20:.0f} MiB are free in {place.resolve()}; a stage wants {least:.0f}", FREE_IT)
    return ok("the disk is not full")


@check(quick="tells")
def room(p: Params) -> Findings:
    (needed, _), free = takes(p), shutil.disk_usage(".").free / 1e9
    said = f"{said_of('images and weights', needed)}; {free:.1f} GB of disk are free"
    return warning(said, FREE_IT) if free < needed else ok(said)


@check(quick="tells")
def clock() -> Findings:
    if paths.PIPELINE.stat().st_mtime > time.time() + 3600:
        now = time.strftime("%Y-%m-%d %H:%M")
        return warning(f"the clock says {now}, before files here were written; https may fail", "set the clock")
    return ok("the clock is not behind the files")


@check(quick="tells")
def accelerator(p: Params) -> Findings:
    """Without loading torch: is there what the parameters ask for?"""
    cuda = shutil.which("nvidia-smi") or any(Path(one).exists() for one in GPU_DEVICES)
    mps = platform.system() == "Darwin"
    asked = {"model": p.model.device} | {f"mllms.{n}": getattr(e, "device", "auto") for n, e in needs.used(p).items()}
    for key, wanted in asked.items():
        if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
            return problem(f"{key}.device is {wanted}, and this machine has none", "set it to auto")
    halves = needs.in_16_bits(p)
    if halves and not cuda and not mps:
        return warning(f"no GPU, and 16 bits for {', '.join(halves)}: very slow", "dtype: float32, or another machine")
    return ok(f"devices: {', '.join(dict.fromkeys(asked.values()))}")


@check()
def gpu(p: Params) -> Findings:
    """Do the driver and torch agree, and is the GPU large enough?"""
    torch = torch_here()
    wrong = problem if p.model.device == "cuda" or needs.in_16_bits(p) else warning
    try:
        cards = gpus()
    except UserError as error:
        return wrong(f"NVIDIA's driver does not work: {error}", "restart the machine, or install the driver again")
    if not cards:
        picked = device.pick(p.model.device, "model.device")
        return ok(f"no NVIDIA GPU; torch {torch.version} computes on {picked}")
    card = min(cards, key=lambda one: one.gb)
    said = f"{len(cards)} x {card.name}, {card.gb:.0f} GB, driver {card.driver}; torch {torch.version}"
    if torch.cuda is None:
        return wrong(f"{said} is a build for processors alone", "install it for your CUDA (docs/reproducing.md)")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return wrong(f"{said}; CUDA_VISIBLE_DEVICES hides the GPU", "unset CUDA_VISIBLE_DEVICES")
    if not torch.works:
        remedy = f"a driver for CUDA {torch.cuda}, or a torch built for this driver and GPU"
        return wrong(f"{said} cannot compute on it {torch.why_not and f'({torch.why_not})'}", remedy)
    _, needed = takes(p)
    said += f" computes on it; {said_of('the models of fine-tuning', needed)}, {card.free_gb:.1f} are free"
    if 0 < card.gb < needed:
        return problem(said, SMALLER)
    return warning(said, "nvidia-smi shows who has the rest") if card.gb > 0 and card.free_gb < needed else ok(said)
