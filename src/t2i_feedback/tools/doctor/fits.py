"""Which set-ups this machine can run, and how long they take, by the arithmetic of `make estimate`."""

import re
import shutil

from t2i_feedback import needs
from t2i_feedback.foundation.durations import in_words
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools import profile
from t2i_feedback.tools.doctor import machine
from t2i_feedback.tools.doctor.checks import Finding, Findings, check
from t2i_feedback.tools.doctor.machine import Gpu
from t2i_feedback.tools.estimate import costs, figures, pace
from t2i_feedback.tools.estimate.figures import Throughputs


@check()
def profiles() -> Findings:
    """The present parameters, and each profile over them, on one GPU or on the processor."""
    try:
        card = next(iter(machine.gpus()), None)
    except UserError:
        card = None
    names = ["", *sorted(one.stem for one in profile.FOLDER.glob("*.yaml"))]
    known = figures.read()
    speed = 1.0 if card else _speed(known)
    return [judged(name, known, card, speed) for name in names]


def judged(name: str, known: Throughputs, card: Gpu | None, speed: float = 1) -> Finding:
    """Whether it fits, how long it takes on the card or on a processor of this pace, or why not."""
    called = f"{name or 'params.yaml as it is'}: "
    try:
        p = profile.chosen(*([name] if name else []))
        disk, memory = costs.room(p, known)
    except UserError as error:
        return Finding(f"{called}{error}", "no")
    if p.data.source != "postcards" and p.model.name.startswith("models/postcards/"):
        return Finding(
            f"{called}the shipped models draw postcards, not {p.data.source}: it needs another model.name", "no"
        )
    halves, free = needs.in_16_bits(p), shutil.disk_usage(".").free / 1e9
    here = card.gb if card and card.gb else machine.memory_gb()[0]
    against = [f"a GPU for 16 bits ({', '.join(halves)})"] if halves and not card else []
    against += [f"{memory:.0f} GB of memory, of {here:.0f}"] if memory > here else []
    against += [f"{disk:.0f} GB of disk, of {free:.0f}"] if disk > free else []
    if against:
        return Finding(f"{called}it takes {', '.join(against)}", "no")
    for gpu in (called_by(card, known) if card else "cpu", "cpu"):
        try:
            hours = costs.estimate(p, known, gpu, 1, speed if gpu == "cpu" else 1).hours
        except UserError:
            continue
        where = "two cores that are as fast as this machine's are now" if gpu == "cpu" else gpu
        return Finding(f"{called}fits, about {in_words(hours * 3600)} on {where}")
    return Finding(f"{called}fits; how long it takes no figure says (make estimate PROFILE={name} tells which)")


def _speed(known: Throughputs) -> float:
    """Of this processor; 1 where torch, which another check looks at, cannot tell."""
    try:
        return pace.here(known, "cpu")
    except (ImportError, OSError, RuntimeError):
        return 1.0


def called_by(card: Gpu, known: Throughputs) -> str:
    """What the figures call the GPU; its own name where they do not know it."""
    alike = [key for key in known.gpus if _letters(key.partition("-")[0]) in _letters(card.name)]
    return min(alike, key=lambda key: abs(known.gpus[key].memory.value - card.gb), default=card.name)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
