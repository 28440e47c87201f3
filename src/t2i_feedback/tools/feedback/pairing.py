"""Which two images of one prompt a person is to compare next."""

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from t2i_feedback.rewards.answers import HIGHEST, LOWEST
from t2i_feedback.rewards.sheet import Line


class Duel(BaseModel):
    """Two images of one prompt, side by side."""

    left: str
    right: str
    prompt: str


def duels(lines: Mapping[str, Line], asked: Sequence[str]) -> list[Duel]:
    """For each prompt with an image that awaits a score: what to ask next. In the order of the images `asked` about.

    The first image without a score meets the one whose score is nearest to the middle of the scale, since that tells
    most about it, or the next without a score while there is none: n images take n - 1 comparisons. Images of earlier
    epochs do not take part, so that the scores that were trained on stay as they are. An image that is the only one of
    its prompt is in no duel. Sides follow from the names.
    """
    groups: dict[str, list[str]] = {}
    for name in asked:
        if name in lines:
            groups.setdefault(lines[name].prompt, []).append(name)
    found = []
    for prompt, names in groups.items():
        unscored = [name for name in names if lines[name].score is None]
        partners = sorted((name for name in names if lines[name].score is not None), key=lambda one: _off(lines[one]))
        partners += unscored[1:]
        if unscored and partners:
            left, right = sorted((unscored[0], partners[0]))
            if hashlib.sha256(f"{left} {right}".encode()).digest()[0] % 2:
                left, right = right, left
            found.append(Duel(left=left, right=right, prompt=prompt))
    return found


def _off(line: Line) -> float:
    """How far the score is from the middle of the scale; a rounding error decides nothing."""
    return round(abs((line.score or 0.0) - (LOWEST + HIGHEST) / 2), 6)
