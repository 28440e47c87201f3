"""What was found, as a table in a terminal and as a page that needs nothing but itself."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from t2i_feedback.foundation.files import write_text
from t2i_feedback.reporting.page import policy
from t2i_feedback.tools.gpu_check.results import FOLDER, Attempt
from t2i_feedback.tools.gpu_check.yaml_lines import as_yaml

HERE = Path(__file__).parent
SPEEDS = (("rollout", "steps_per_second", "steps/s"), ("questions", "questions_per_second", "questions/s"))


def text(found: Mapping[str, Attempt]) -> str:
    """A line for each part: how it ended, how fast it was, what it took, and what had been estimated and reckoned."""
    lines = [f"{'part':16}{'speed':>22}{'estimated':>11}{'peak GB':>9}{'reckoned':>10}  state"]
    for one in found.values():
        speed, measured, reckoned = speed_of(one), *peak_of(one)
        told = [number(one.figure("estimates", "estimated")), number(measured), number(reckoned)]
        lines.append(f"{one.task:16}{speed:>22}{told[0]:>11}{told[1]:>9}{told[2]:>10}  {one.state}")
    return "\n".join(lines)


def speed_of(one: Attempt) -> str:
    for phase, name, unit in SPEEDS:
        if (value := one.figure(phase, name)) is not None:
            return f"{number(value)} {unit}"
    return "–"


def peak_of(one: Attempt) -> tuple[float | None, float | None]:
    """The highest measured peak of a part's phases, and what was reckoned for the one that has it."""
    if not one.peaks:
        return None, None
    highest = max(one.peaks, key=lambda phase: one.peaks[phase])
    return one.peaks[highest], one.reckoned(highest)


def number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float | int) else "–" if value is None else str(value)


def write(found: Mapping[str, Attempt], device: str) -> Path:
    """The page of all parts so far; every text in it is escaped. Returns its path."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"number": number, "speed": speed_of, "peak": peak_of}
    style = (HERE / "page.css").read_text(encoding="utf-8")
    lines = [line for one in found.values() for line in one.corrections]
    path = FOLDER / "report.html"
    write_text(
        path,
        environment.get_template("page.html.j2").render(
            style=Markup(style),
            policy=policy(style, ""),
            device=device,
            card=next((one.phases["card"].figures for one in found.values() if "card" in one.phases), None),
            parts=list(found.values()),
            yaml=as_yaml(lines) if lines else "",
        ),
    )
    return path
