"""What was found, line by line: a part's beginning, what each of its phases measured, its end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from t2i_feedback.foundation.rows import Row, read_rows

FOLDER = Path("gpu-check")
RESULTS = FOLDER / "results.jsonl"
BEGUN, ENDED = "begun", "ended"
UNFIT, LEFT_OUT = "does not fit", "left out"  # how problems begin that this card will always have
Figures = dict[str, float | str | bool]
Phases = Iterator[tuple[str, Figures]]  # each by its name


class Correction(Row):
    """A figure for estimates/throughputs.yaml."""

    key: tuple[str, ...]  # where it stands
    value: float
    unit: str
    source: str


class Result(Row):
    """Of one phase of a part; `problem` says why it has no figures, or fewer."""

    task: str
    device: str
    phase: str
    figures: dict[str, float | str | bool] = {}  # noqa: RUF012
    problem: str | None = None
    corrections: tuple[Correction, ...] = ()


@dataclass
class Attempt:
    """The last time that a part was run."""

    task: str
    phases: dict[str, Result] = field(default_factory=dict)
    end: Result | None = None

    @property
    def problems(self) -> list[str]:
        return [f"{phase}: {one.problem}" for phase, one in self.phases.items() if one.problem]

    @property
    def done(self) -> bool:
        """It need not be run again: it came to its end, and nothing went wrong that would not do so again."""
        lasting = (one.problem.startswith((UNFIT, LEFT_OUT)) for one in self.phases.values() if one.problem)
        return self.end is not None and self.end.problem is None and all(lasting)

    @property
    def state(self) -> str:
        if self.end is None:
            return "was killed midway"
        return self.end.problem or "; ".join(self.problems) or "done"

    def figure(self, phase: str, name: str) -> float | None:
        """A number that a phase measured, if it did."""
        found = self.phases[phase].figures.get(name) if phase in self.phases else None
        return None if found is None or isinstance(found, str) else float(found)

    @property
    def corrections(self) -> list[Correction]:
        return [line for one in self.phases.values() for line in one.corrections]

    @property
    def card(self) -> tuple[str, float] | None:
        """Name and GB of the card that it ran on."""
        memory = self.figure("card", "memory_gb")
        return None if memory is None else (str(self.phases["card"].figures["name"]), memory)

    def reckoned(self, phase: str) -> float | None:
        """The peak in GB that was reckoned for a phase."""
        names = {"rollout": ("drawing", "decoding")}.get(phase, (phase,))  # it draws, and then decodes
        known = [found for name in names if (found := self.figure("reckoned", name)) is not None]
        return max(known, default=self.figure(phase, "reckoned_gb"))

    @property
    def peaks(self) -> dict[str, float]:
        """The measured peak in GB of each phase that has one."""
        return {phase: peak for phase in self.phases if (peak := self.figure(phase, "peak_gb")) is not None}


def add(result: Result, path: Path = RESULTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(result.model_dump_json() + "\n")


def read(path: Path = RESULTS) -> list[Result]:
    """All lines. Raises UserError that names one that is broken."""
    return read_rows(path, Result) if path.exists() else []


def attempts(rows: Iterable[Result], device: str) -> dict[str, Attempt]:
    """Of every part that was begun on that device, the last."""
    found: dict[str, Attempt] = {}
    for row in rows:
        if row.device != device:
            continue
        if row.phase == BEGUN:
            found.pop(row.task, None)
            found[row.task] = Attempt(row.task)
        elif row.phase == ENDED:
            found.setdefault(row.task, Attempt(row.task)).end = row
        else:
            found.setdefault(row.task, Attempt(row.task)).phases[row.phase] = row
    return found
