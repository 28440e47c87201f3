"""A collected table as Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from t2i_feedback.reporting import paper
from t2i_feedback.reporting.tables import NOTHING, number, signed
from t2i_feedback.tools.paper.compare import FORMULA, Difference, deviations, difference, protocol, with_error
from t2i_feedback.tools.paper.rows import Column, Figure, Layout, TableRow

OF_FEATURES = ("fid", "is")  # columns that only numbers of one extractor may share
INCEPTION = "inception-v3-compat"  # the extractor of published FIDs; the paper names none


@dataclass(frozen=True)
class Measured:
    """What an experiment says of a row."""

    rev: str  # the experiment's commit
    figures: Mapping[str, Figure]
    card: Mapping[str, object]
    n: int


@dataclass(frozen=True)
class Line:
    """A row of the table: ours beside the paper's, or the reason why ours is missing."""

    row: TableRow
    ours: Measured | None
    missing: str = ""

    def difference(self, column: Column) -> Difference | None:
        if (
            self.ours is None
            or column.key not in self.ours.figures
            or (column.key in OF_FEATURES and self.ours.card.get("extractor") != INCEPTION)
        ):
            return None
        return difference(
            self.ours.figures[column.key], with_error(self.row.paper[column.key], column.key, self.ours.n)
        )


def lines(layout: Layout, found: Mapping[tuple[str, str], Measured | str]) -> list[Line]:
    """`found`: (experiment, arm) -> its numbers, or why there are none.

    Numbers of different protocols do not come into one column: the first row that was measured sets it, and a row
    that deviates says in what.
    """
    made: list[Line] = []
    first: Measured | None = None
    for row in layout.rows:
        ours = found[row.experiment, row.arm]
        if isinstance(ours, str):
            made.append(Line(row, None, ours))
            continue
        first = first or ours
        other = deviations(ours.card, first.card)
        made.append(Line(row, None, f"another protocol: {'; '.join(other)}") if other else Line(row, ours))
    return made


def title(layout: Layout, stamp: str) -> str:
    return f"{f'{stamp}. ' if stamp else ''}Table {layout.number}. {layout.title}"


def markdown(layout: Layout, made: Sequence[Line], stamp: str, profiles: Sequence[str]) -> str:
    heads = [f"{column.title} {which}" for column in layout.columns for which in ("ours", "paper", "difference")]
    rows = [[*line.row.names, *_cells(layout, line)] for line in made]
    text = [f"# {title(layout, stamp)}", "", _md([*layout.heading, *heads]), _md(["---"] * (len(rows[0])))]
    text += [_md(row) for row in rows]
    if stamp:
        text += ["", f"**{stamp}**: these numbers show that the commands work, and nothing about any model."]
    extractor = shared_protocol(made).get("extractor", INCEPTION)
    if extractor != INCEPTION:
        text += ["", f"FID and IS are of {extractor}, not of Inception: they have no difference from the paper's."]
    gone = [line for line in made if line.missing]
    if gone:
        text += ["", "Missing:", ""]
        text += [f"* {' / '.join(line.row.names)}: {_plain(line.missing)}" for line in gone]
    text += ["", FORMULA, "", f"Ours, by {' and '.join(profiles) or 'no'} profile:", ""]
    text += [f"* {key.replace('_', ' ')}: {value}" for key, value in shared_protocol(made).items()]
    return "\n".join([*text, "", f"The paper: {paper.PROTOCOL}", ""])


def comma_separated(layout: Layout, made: Sequence[Line], stamp: str) -> str:
    """One line a row: for each column ours, its ±, the paper's, its ±, the difference and its interval."""
    columns = ["stamp", *layout.heading, "experiment", "arm", "n", "missing"]
    parts = ("ours", "ours_spread", "paper", "paper_spread", "difference", "low", "high")
    columns += [f"{column.key}_{part}" for column in layout.columns for part in parts]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for line in made:
        cells: list[object] = [stamp, *line.row.names, line.row.experiment, line.row.arm]
        cells += [line.ours.n if line.ours else "", line.missing]
        for column in layout.columns:
            ours, theirs = line.ours and line.ours.figures.get(column.key), line.row.paper[column.key]
            found = line.difference(column)
            cells += [ours.value, ours.spread] if ours else ["", ""]
            cells += [theirs.value, theirs.spread, *((found.value, found.low, found.high) if found else ("", "", ""))]
        writer.writerow("" if cell is None else cell for cell in cells)
    return buffer.getvalue()


def plain(layout: Layout, made: Sequence[Line], stamp: str, profiles: Sequence[str]) -> dict:
    """For JSON."""
    rows = []
    for line in made:
        found = {column.key: line.difference(column) for column in layout.columns}
        rows.append(
            {
                "names": list(line.row.names),
                "experiment": line.row.experiment,
                "arm": line.row.arm,
                "paper": {key: asdict(figure) for key, figure in line.row.paper.items()},
                "ours": {key: asdict(figure) for key, figure in line.ours.figures.items() if key in found}
                if line.ours
                else None,
                "difference": {
                    key: {"value": one.value, "low": one.low, "high": one.high} for key, one in found.items() if one
                },
                "n": line.ours.n if line.ours else None,
                "commit": line.ours.rev if line.ours else None,
                "card": dict(line.ours.card) if line.ours else None,
                "missing": line.missing,
            }
        )
    return {
        "title": title(layout, stamp),
        "stamp": stamp,
        "profiles": list(profiles),
        "formula": FORMULA,
        "protocol": shared_protocol(made),
        "paper_protocol": paper.PROTOCOL,
        "rows": rows,
    }


def shared_protocol(made: Sequence[Line]) -> dict[str, object]:
    return next((protocol(line.ours.card) for line in made if line.ours), {})


def _cells(layout: Layout, line: Line) -> list[str]:
    cells = []
    for column in layout.columns:
        ours, theirs = line.ours and line.ours.figures.get(column.key), line.row.paper[column.key]
        found = line.difference(column)
        between = NOTHING
        if found:
            low, high = signed(found.low, column.digits), signed(found.high, column.digits)
            between = f"{signed(found.value, column.digits)} [{low}, {high}]"
        cells += [_figure(ours, column) if ours else NOTHING, _figure(theirs, column), between]
    return cells


def _figure(figure: Figure, column: Column) -> str:
    whole = column.key == "rounds_mean" and figure.spread is None  # one round, by definition
    return number(figure.value, 0 if whole else column.digits, figure.spread)


def _md(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """On one line, and no mark-up in it."""
    return " ".join(text.split()).replace("<", "&lt;")
