"""What a check is and says. A new one is a function with `@check()` in one of the modules beside this one.

One that takes the parameters is left out while they are not in order.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Quick = Literal["stops", "tells", ""]  # before a run: a problem stops it, or is told; "" = it is not looked for


@dataclass(frozen=True)
class Finding:
    """With a problem a run fails that has something to compute; `no`: a set-up that nobody chose cannot run here."""

    what: str
    verdict: Literal["ok", "no", "warning", "problem"] = "ok"
    remedy: str = ""

    def __str__(self) -> str:
        words = " -> ".join(" ".join(part.split()) for part in (self.what, self.remedy) if part)
        return f"{self.verdict:9}{words}"


Findings = list[Finding]
Look = Callable[..., Findings]


@dataclass(frozen=True)
class Check:
    look: Look
    quick: Quick

    @property
    def takes_parameters(self) -> bool:
        return bool(inspect.signature(self.look).parameters)


CHECKS: list[Check] = []


def check(quick: Quick = "") -> Callable[[Look], Look]:
    def register(look: Look) -> Look:
        CHECKS.append(Check(look, quick))
        return look

    return register


def ok(what: str) -> Findings:
    return [Finding(what)]


def warning(what: str, remedy: str) -> Findings:
    return [Finding(what, "warning", remedy)]


def problem(what: str, remedy: str) -> Findings:
    return [Finding(what, "problem", remedy)]
