"""Scores from comparisons: which of two images of one prompt is better, by the Bradley-Terry model.

Each image has a strength s, and of two images

    P(i is better than j) = sigmoid(s_i - s_j)

(Bradley and Terry, "Rank analysis of incomplete block designs I", Biometrika 39 (1952), 324-345). A tie is half a win
for each. Every image is also taken to have tied once with a typical image, whose strength is 0: an image that won or
lost each time then has a finite strength. With w_ij the wins of i over j, the strengths maximise

    sum_ij w_ij log sigmoid(s_i - s_j)  +  1/2 sum_i (log sigmoid(s_i) + log sigmoid(-s_i))

An image's score is 1 + 9 sigmoid(s): the probability that it is better than the typical image, on the scale of direct
scores. After a single comparison the winner has 7.1 and the other 3.9; the mean over a prompt's images is 5.5.

A direct score stands as it is, whether it was given before the comparisons or after them. The strength of its image is
held at log(p / (1 - p)) with p = (score - 1) / 9, from 0.05 to 0.95, so that images compared with it are placed by it.
Where a prompt has a direct score, the mean of the others need not be 5.5.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from t2i_feedback.rewards.answers import HIGHEST, LOWEST, Choice

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

SUREST = 0.95  # the probability of a direct score of HIGHEST; its strength would be infinite
SHARE = {"left": 1.0, "right": 0.0, "neither": 0.5}  # of a win, for the image on the left


def scores(
    prompts: Mapping[str, str], direct: Mapping[str, float | None], choices: Iterable[Choice]
) -> dict[str, float]:
    """Image -> its score, of all that were compared and have no direct score.

    `prompts` has the prompt of each image. A choice between images of different prompts, or of images that it does not
    have, does not count; of the choices between the same two images the last one does.
    """
    last: dict[frozenset[str], Choice] = {}
    for choice in choices:
        left, right = prompts.get(choice.left), prompts.get(choice.right)
        if choice.left != choice.right and left is not None and left == right:
            last[frozenset((choice.left, choice.right))] = choice
    by_prompt: dict[str, list[Choice]] = {}
    for choice in last.values():
        if choice.better is not None:
            by_prompt.setdefault(prompts[choice.left], []).append(choice)
    found: dict[str, float] = {}
    for some in by_prompt.values():
        images = sorted({image for choice in some for image in (choice.left, choice.right)})
        wins = tuple(
            sorted((images.index(c.left), images.index(c.right), SHARE[c.better]) for c in some if c.better is not None)
        )
        strong = strengths(len(images), wins, tuple(_strength(direct.get(image)) for image in images))
        span = HIGHEST - LOWEST
        found |= {
            image: LOWEST + span * _sigmoid(strength)
            for image, strength in zip(images, strong, strict=True)
            if direct.get(image) is None
        }
    return found


@lru_cache(maxsize=4096)  # a sheet is read again at every answer, and one prompt of it has changed
def strengths(
    count: int, shares: tuple[tuple[int, int, float], ...], held: tuple[float | None, ...]
) -> tuple[float, ...]:
    """The strengths of `count` images. `shares`: image, other image, and the first one's share of a win between them;
    `held`: strengths that are known."""
    import numpy as np
    from scipy.optimize import minimize

    wins = np.zeros((count, count))
    for image, other, share in shares:
        wins[image, other] += share
        wins[other, image] += 1 - share
    free = np.array([strength is None for strength in held])
    found = np.array([0.0 if strength is None else strength for strength in held])

    def loss(chosen: "NDArray[float64]") -> "tuple[float, NDArray[float64]]":
        """Negative log posterior, and its gradient by the strengths that are free."""
        s = found.copy()
        s[free] = chosen
        apart = s[:, None] - s[None, :]
        lost = wins / (1 + np.exp(apart))  # [i, j]: wins of i that the model thinks j's
        value = (wins * np.logaddexp(0, -apart)).sum() + (np.logaddexp(0, chosen) + np.logaddexp(0, -chosen)).sum() / 2
        slope = (lost.sum(0) - lost.sum(1))[free] + np.tanh(chosen / 2) / 2
        return float(value), slope

    if free.any():
        found[free] = minimize(loss, np.zeros(free.sum()), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return tuple(found.tolist())


def _strength(direct: float | None) -> float | None:
    """The strength that an image with this direct score is held at."""
    if direct is None:
        return None
    p = min(max((direct - LOWEST) / (HIGHEST - LOWEST), 1 - SUREST), SUREST)
    return math.log(p / (1 - p))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
