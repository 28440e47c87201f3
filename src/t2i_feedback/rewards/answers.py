"""Scores and choices that a person gave on a page, one line each, in the order in which they were given.

They lie beside a score sheet that a spreadsheet program may rewrite at any time, and nothing of them is ever rewritten.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from t2i_feedback.foundation.errors import UserError

LOWEST, HIGHEST = 1.0, 10.0
Score = Annotated[float, Field(ge=LOWEST, le=HIGHEST, allow_inf_nan=False)]


class Answer(BaseModel):
    """What was said of one image. A score of None takes back what was said before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    score: Score | None
    typed: Score | None  # what the score sheet said of the image at that moment
    at: str  # ISO 8601, in UTC

    def after(self, typed: float | None) -> float | None:
        """The score that counts when the sheet says `typed` now: what changed there since was typed later."""
        return self.score if typed == self.typed else typed


class Choice(BaseModel):
    """Which of two images of one prompt is better. None takes back what was said of the two before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    left: str
    right: str
    better: Literal["left", "right", "neither"] | None
    at: str  # ISO 8601, in UTC


class Said(RootModel[Answer | Choice]):
    """A line of answers.jsonl."""


Line = TypeVar("Line", bound=BaseModel)


def append(path: Path, answer: BaseModel) -> None:
    """Add a line, which is on the disk when this returns. A line that a crash cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + answer.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, kind: type[Line]) -> list[Line]:
    """All lines, in the order in which they were given. What a crash cut short was never said.

    Raises UserError that names the first line that is whole and yet no answer.
    """
    found: list[Line] = []
    if not path.exists():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip("\0 \r"):  # zeros: what a file system may leave of a line when the power fails
            continue
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            if line.rstrip().endswith("}") or not line.startswith("{"):
                why = error.errors()[0]["msg"]
                raise UserError(f"{path}:{number} is no answer ({why}): delete that line and run again") from None
    return found


def said(path: Path) -> tuple[dict[str, Answer], list[Choice]]:
    """Image -> what was said of it last; and all choices between two images. Raises UserError as `read` does."""
    lines = [line.root for line in read(path, Said)]
    return {one.image: one for one in lines if isinstance(one, Answer)}, [
        one for one in lines if isinstance(one, Choice)
    ]
