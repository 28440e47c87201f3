"""What the user says of an epoch's pictures: who is asked about what, and when."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from t2i_feedback import processes

Reward = Callable[[list[Image.Image], list[str]], Sequence[float | None]]


@dataclass(frozen=True)
class Scores:
    """Of an epoch's N pictures, in their order."""

    values: list[float | None]  # raw reward; None = masked, or nobody was asked
    weights: list[float]  # 1 = the user's own word, 0 = plays no part in the update
    asked: int  # pictures that the user was asked about
    masked: int  # of those, how many without a valid answer


class Feedback:
    """Asks about every picture. `reward` is given pictures as saved and their prompts; `None` masks a picture.

    With `overlap` a picture's score is asked for, in a thread, as soon as it is drawn: judging and drawing go on at the
    same time, and the scores are the same.
    """

    def __init__(self, reward: Reward, *, overlap: bool = False):
        self.reward = reward
        self._thread = ThreadPoolExecutor(1, "judging") if overlap else None
        self._answers: list[tuple[list[int], Future[Sequence[float | None]]]] = []

    def drawn(self, numbers: list[int], images: list[Image.Image], prompts: list[str]) -> None:
        """Told by the trainer that this process has drawn the epoch's pictures with these numbers."""
        if self._thread:
            self._answers.append((numbers, self._thread.submit(self.reward, images, prompts)))

    def scores(self, epoch: int, images: list[Image.Image], prompts: list[str]) -> Scores:
        """The scores of all N pictures of the epoch, alike in every process; each asks about its share."""
        if self._thread:
            answered, self._answers = self._answers, []
            given = [(numbers, answer.result()) for numbers, answer in answered]
        else:
            mine = list(processes.share(range(len(images))))
            given = [(mine, self.reward([images[i] for i in mine], [prompts[i] for i in mine]))] if mine else []
        values = torch.zeros(len(images), dtype=torch.float64)
        for numbers, found in given:
            values[numbers] = torch.tensor([float("nan") if x is None else x for x in found], dtype=torch.float64)
        processes.combine(values)
        scored = [None if value != value else value for value in values.tolist()]
        weights = [0.0 if value is None else 1.0 for value in scored]
        return Scores(scored, weights, asked=len(images), masked=scored.count(None))

    def state(self) -> dict[str, torch.Tensor]:
        """What later epochs depend on, for a checkpoint."""
        return {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's `state`."""
