"""What differs from an earlier run: its parameters and headline numbers beside those of this one.

The report stage knows no earlier run, since its page must follow from what it depends on alone. The tool `compare`
asks DVC for the differences and writes the same page with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i_feedback import arms
from t2i_feedback.reporting.tables import BY_KEY, NOTHING, Table, number, plain_table, signed

DIGITS = 3  # of a number that is no arm's


@dataclass(frozen=True)
class Before:
    name: str  # of the earlier run
    parameters: Table | None
    numbers: Table | None
    unseen: int  # numbers that differ by less than the digits written


def compared(name: str, parameters: Mapping[str, Any], numbers: Mapping[str, Any]) -> Before:
    """The arguments are DVC's differences: a key of params.yaml or of headline.json -> `old` and `new`."""
    chosen = [(key, _value(change.get("old")), _value(change.get("new"))) for key, change in sorted(parameters.items())]
    lines = [line for key, change in numbers.items() if (line := _line(key, change.get("old"), change.get("new")))]
    return Before(
        name,
        plain_table(("parameter", "before", "now"), chosen, sort="rows") if chosen else None,
        plain_table(("number", "before", "now", "change"), sorted(lines), sort="rows") if lines else None,
        len(numbers) - len(lines),
    )


def _line(key: str, old: float | None, new: float | None) -> tuple[str, ...] | None:
    """None when both are written alike."""
    part, _, name = key.partition(".")
    metric = BY_KEY.get(name)
    digits = metric.digits if metric else DIGITS
    if number(old, digits) == number(new, digits):
        return None
    label = metric.label if metric else (name or part).replace("_", " ")
    who = f"{arms.by_name(part).label}: " if part in arms.NAMES else ""
    change = NOTHING if old is None or new is None else signed(new - old, digits + 1)
    return f"{who}{label}", number(old, digits), number(new, digits), change


def _value(value: object) -> str:
    return NOTHING if value is None else str(value)
