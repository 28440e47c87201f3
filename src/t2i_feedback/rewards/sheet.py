"""A score sheet: a person stands in for the simulated user.

A folder holds the images, a page that shows them (index.html), and scores.csv with a row per image, whose last
column the person fills in with any spreadsheet program or editor. An image is known by its pixels: drawn again, it
finds its score, also where other hardware draws it a grey level apart. Rows are only ever added, at the end of the
file as it is: nothing that was typed is rewritten. Answers given on the page of `make feedback` stand beside it, in
answers.jsonl: scores, of which the later of answer and cell counts, and choices between two images of one prompt, which
become scores of images that have none (`rewards.pairwise`). asked.txt has the names of the images that the last run
asked about, in its order.
"""

import csv
import hashlib
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards import answers, pairwise
from t2i_feedback.rewards.answers import HIGHEST, LOWEST, Answer, Choice

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("image", "prompt", "score")
SAME = 2  # grey levels by which an image that is drawn again may differ
SHOWN = 256  # pixels: how wide the page shows an image at least


@dataclass(frozen=True)
class Line:
    """A row of the sheet."""

    prompt: str
    score: float | None  # None = not filled in yet
    number: int  # in the file, from 1


class Sheet:
    """The score sheet in `folder`, for one preference."""

    def __init__(self, folder: Path, preference: str):
        self.folder, self.preference = folder, preference
        self.path, self.page = folder / "scores.csv", folder / "index.html"
        self.answers, self.comparisons = folder / "answers.jsonl", folder / "comparisons.jsonl"
        self._asked = folder / "asked.txt"

    def enter(self, images: "Sequence[Image]", prompts: Sequence[str]) -> list[str]:
        """The images' names; those that the sheet does not have yet get a row. Raises UserError as `read` does."""
        from t2i_feedback.foundation.images import save_png

        lines = self.read()
        names = [self._name(image, prompt, lines) for image, prompt in zip(images, prompts, strict=True)]
        given = zip(names, images, prompts, strict=True)
        new = {name: (image, prompt) for name, image, prompt in given if name not in lines}
        if new:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, (image, _) in new.items():
                save_png(image, self.folder / name, {})
            self._append([(name, prompt) for name, (_, prompt) in new.items()])
            self._show(self.read())
        return names

    def unscored(self, names: Sequence[str]) -> list[str]:
        """Those of the images that have no score yet, each once."""
        lines = self.read()
        return [name for name in dict.fromkeys(names) if name not in lines or lines[name].score is None]

    def read(self) -> dict[str, Line]:
        """Image -> its row, with the score that counts.

        Raises UserError that names the line of the first of what is wrong, and how many are.
        """
        lines = self._typed()
        said, choices = answers.said(self.answers)
        direct = {name: said[name].after(line.score) if name in said else line.score for name, line in lines.items()}
        compared = pairwise.scores({name: line.prompt for name, line in lines.items()}, direct, choices)
        return {name: replace(line, score=compared.get(name, direct[name])) for name, line in lines.items()}

    def ask(self, names: Sequence[str]) -> None:
        """Keep which images a run asks about, in the order in which they are to be shown."""
        files.write_text(self._asked, "".join(f"{name}\n" for name in names))

    def asked(self) -> list[str]:
        """Which images the last run asked about, in its order; empty before the first."""
        return self._asked.read_text(encoding="utf-8").split() if self._asked.exists() else []

    def answer(self, image: str, score: float | None) -> None:
        """Keep the score that a person gave on a page; None takes it back. It is on the disk when this returns.

        Raises UserError when the sheet has no such image, ValueError when the score is not from LOWEST to HIGHEST.
        """
        lines = self._typed()
        if image not in lines:
            raise UserError(f"{self.path} has no image {image!r}")
        answers.append(self.answers, Answer(image=image, score=score, typed=lines[image].score, at=_now()))

    def compare(self, left: str, right: str, better: Literal["left", "right", "neither"] | None) -> None:
        """Keep which of two images a person finds better; None takes it back. It is on the disk when this returns.

        Raises UserError unless the sheet has both and they are different images of one prompt.
        """
        lines = self._typed()
        if left == right or left not in lines or right not in lines or lines[left].prompt != lines[right].prompt:
            raise UserError(f"{left!r} and {right!r} are no two images of one prompt in {self.path}")
        answers.append(self.answers, Choice(left=left, right=right, better=better, at=_now()))

    def _typed(self) -> dict[str, Line]:
        """Image -> its row, as it stands in the file."""
        if not self.path.exists():
            return {}
        text, _ = self._text()
        lines: dict[str, Line] = {}
        problems: list[str] = []
        rows = self._rows(text)
        header = _columns(rows[0]) if rows else []
        if missing := [column for column in COLUMNS if column not in header]:
            raise UserError(f"{self.path} has no column {', '.join(missing)}: its first line must name them")
        place = [header.index(column) for column in COLUMNS]
        for number, row in enumerate(rows[1:], 2):
            image, prompt, typed = (row[i].strip() if i < len(row) else "" for i in place)
            if not image:
                if typed:
                    problems.append(f"line {number}: the score {typed} belongs to no image")
                continue
            score, problem = _score(typed)
            if problem:
                problems.append(f"line {number}: {problem}")
            elif image in lines and None not in (score, lines[image].score) and score != lines[image].score:
                problems.append(f"line {number}: another score for the image of line {lines[image].number}")
            elif image not in lines or score is not None:
                lines[image] = Line(prompt, score, number)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"{self.path}, {problems[0]}{more}; mend it and run again")
        return lines

    # -------------------------------------------------------------------------------------------- images

    def _name(self, image: "Image", prompt: str, lines: dict[str, Line]) -> str:
        """The file name of the image: one that is there and shows the same, or a new one of its pixels' digest."""
        import numpy as np

        from t2i_feedback.foundation.images import open_rgb

        name = f"{hashlib.sha256(f'{image.size} {prompt} '.encode() + image.tobytes()).hexdigest()[:16]}.png"
        if name in lines:
            return name
        mine = np.asarray(image.convert("RGB"), dtype=np.int16)
        for other, line in lines.items():
            path = self.folder / other
            if line.prompt == _plain(prompt) and path.exists():
                theirs = np.asarray(open_rgb(path), dtype=np.int16)
                if theirs.shape == mine.shape and np.abs(theirs - mine).max() <= SAME:
                    return other
        return name

    # -------------------------------------------------------------------------------------------- the file

    def _text(self) -> tuple[str, str]:
        """The file's text and its encoding: UTF-8, or what spreadsheet programs make of it."""
        data = self.path.read_bytes()
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            try:
                return data.decode("utf-16"), "utf-16-le" if data[0] == 0xFF else "utf-16-be"
            except UnicodeDecodeError:
                raise UserError(f"{self.path} is cut off in the middle of a letter (UTF-16): save it again") from None
        try:
            return data.decode("utf-8-sig"), "utf-8"
        except UnicodeDecodeError:
            return data.decode("cp1252", errors="replace"), "cp1252"

    def _rows(self, text: str) -> list[list[str]]:
        """The file's cells, whatever ends a line: of spreadsheet programs, one writes carriage returns alone."""
        try:
            return list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text)))
        except csv.Error as error:
            raise UserError(f"{self.path} is not CSV: {error}") from None

    def _append(self, rows: Sequence[tuple[str, str]]) -> None:
        """Add rows without a score behind the bytes that are there, in the file's own style."""
        if self.path.exists():
            text, encoding = self._text()
            before = self.path.read_bytes()
            start = "" if text.endswith(("\n", "\r")) else "\r\n"
            delimiter = _delimiter(text)
            header = _columns(self._rows(text)[0])
        else:
            before, encoding, start, delimiter, header = "\ufeff".encode(), "utf-8", "", ",", list(COLUMNS)
            start = f"{','.join(COLUMNS)}\r\n"
        made = io.StringIO(newline="")
        writer = csv.writer(made, delimiter=delimiter, lineterminator="\r\n")
        for name, prompt in rows:
            cells = {"image": name, "prompt": _plain(prompt)}
            writer.writerow([cells.get(column, "") for column in header])
        files.write_bytes(self.path, before + (start + made.getvalue()).encode(encoding, errors="replace"))

    def _show(self, lines: dict[str, Line]) -> None:
        """The page: what is not scored yet comes first, in the order of the sheet."""
        ordered = sorted(lines.items(), key=lambda item: (item[1].score is not None, item[1].number))
        figures = "\n".join(
            f'<figure><img src="{html.escape(name)}" alt="{html.escape(line.prompt)}"><figcaption>'
            f"<code>{html.escape(name)}</code>, line {line.number}: "
            f"{'to be scored' if line.score is None else f'{line.score:g}'}<br>{html.escape(line.prompt)}"
            "</figcaption></figure>"
            for name, line in ordered
        )
        page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Images to be scored</title><style>
body {{ font: 16px sans-serif; margin: 2rem; }} div {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; width: {SHOWN}px; }} img {{ width: 100%; image-rendering: pixelated; }}
</style></head><body>
<h1>How well does each image fit: “{html.escape(self.preference)}”?</h1>
<p>Write a score from {LOWEST:g} (not at all) to {HIGHEST:g} (perfectly) into the last column of
<code>{html.escape(self.path.name)}</code>, then run the same command again.</p>
<div>
{figures}
</div></body></html>
"""
        files.write_text(self.page, page)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _columns(line: Sequence[str]) -> list[str]:
    """The names in the first line; sheets of earlier versions say picture."""
    names = (cell.strip().lower() for cell in line)
    return ["image" if name == "picture" else name for name in names]


def _delimiter(text: str) -> str:
    """What separates the columns of the first line; spreadsheet programs of many countries write semicolons."""
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    return max(",;\t", key=first.count)


def _score(typed: str) -> tuple[float | None, str]:
    """The score, or what is wrong with it. A decimal comma is one."""
    if not typed:
        return None, ""
    try:
        score = float(typed.replace(",", "."))
    except ValueError:
        return None, f"the score {typed!r} is not a number from {LOWEST:g} to {HIGHEST:g}"
    if not LOWEST <= score <= HIGHEST:
        return None, f"the score {typed} is not from {LOWEST:g} to {HIGHEST:g}"
    return score, ""


def _plain(prompt: str) -> str:
    """The prompt as a cell: one line, and nothing that a spreadsheet program takes for a formula."""
    text = " ".join(prompt.split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
