"""What the user says of an epoch's pictures: who is asked about what, and what is made of the rest.

The user's opinion is the scarce thing. With a `Budget` only some of an epoch's pictures are asked about; a surrogate
(`ddpo.surrogate`), which has learnt from every answer so far, gives the others a score, and its weight in the update is

    weight = surrogate_weight x max(0, 1 - variance of that score / variance of the epoch's answers)

so that it counts as far as it explains what tells pictures apart. The variance is the surrogate's own, but no less than
its squared error on the epoch's answers before it learnt from them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image

from t2i_feedback.finetuning import surrogate
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.image_models.base import noise_seed

Reward = Callable[[list[Image.Image], list[str]], Sequence[float | None]]
Embed = Callable[[list[Image.Image]], np.ndarray]  # N pictures -> [N, D]

MEMORY = 4096  # newest answers that the surrogate learns from


@dataclass(frozen=True)
class Scores:
    """Of an epoch's N pictures, in their order."""

    values: list[float | None]  # reward; None = masked, or nobody was asked and nothing is known
    weights: list[float]  # 1 = the user's own word, between 0 and 1 = a surrogate's, 0 = plays no part in the update
    asked: int  # pictures that the user was asked about
    masked: int  # of those, how many without a valid answer
    parts: dict[str, float] = field(default_factory=dict)  # reward -> mean raw value of the pictures asked about
    surrogate_error: float | None = None  # root mean square, on this epoch's answers before it learnt from them


@dataclass(frozen=True)
class Budget:
    """Fewer questions than pictures."""

    questions: int  # per epoch
    acquisition: Literal["random", "uncertainty"]
    surrogate_weight: float  # 0..1
    per_prompt: bool  # advantages compare pictures of one prompt
    embed: Embed
    seed: int


class Feedback:
    """Scores an epoch's pictures. Rewards are given pictures as saved and their prompts; `None` masks a picture.

    `rewards` is one, or several by name of which `total` makes a picture's score; a picture is masked if one of them
    is. `heard` words what was said instead of valid answers, for a message. Without a `budget` every picture is asked
    about. With `overlap` a picture's score is asked for, in a thread, as soon as it is drawn: judging and drawing go on
    at the same time, and the scores are the same. The processes divide the asking between them, unless `divided` is
    false: then each asks about all, and what the first is told counts.
    """

    def __init__(
        self,
        rewards: Reward | Mapping[str, Reward],
        total: Callable[[Mapping[str, float]], float] | None = None,
        *,
        budget: Budget | None = None,
        overlap: bool = False,
        divided: bool = True,
        heard: Callable[[], str] = lambda: "",
    ):
        self.rewards = rewards if isinstance(rewards, Mapping) else {"reward": rewards}
        self.total = total or (lambda raw: sum(raw.values()))
        self.budget, self.divided, self.heard = budget, divided, heard
        self._thread = ThreadPoolExecutor(1, "judging") if overlap else None
        self._answers: list[tuple[list[int], Future[torch.Tensor]]] = []
        nothing = torch.zeros(0, dtype=torch.float64)
        self._learnt = {"embeddings": nothing, "scores": nothing}

    def drawn(self, numbers: list[int], images: list[Image.Image], prompts: list[str]) -> None:
        """Told by the trainer that this process has drawn the epoch's pictures with these numbers."""
        if self._thread:
            self._answers.append((numbers, self._thread.submit(self._raw, images, prompts)))

    def scores(self, epoch: int, images: list[Image.Image], prompts: list[str]) -> Scores:
        """The scores of all N pictures of the epoch, alike in every process.

        Raises UserError when a reward is not finite.
        """
        if self.budget is None:
            return self._answered(list(range(len(images))), self._ask(epoch, range(len(images)), images, prompts))
        embedded = torch.from_numpy(np.asarray(self.budget.embed(images), dtype=np.float64))
        known, new = self._standardised(embedded)
        model = surrogate.fit(known, self._centred(self._learnt["scores"]))
        chosen = self._choose(epoch, self.budget, model, new, prompts)
        scores = self._answered(chosen, self._ask(epoch, chosen, images, prompts), len(images))
        valid = [number for number in chosen if scores.values[number] is not None]
        said = torch.tensor([scores.values[number] for number in valid], dtype=torch.float64)
        error = None
        if len(known) and valid:
            expected = model.predict(new[valid])[0] + self._learnt["scores"].mean()
            error = float((expected - said).square().mean().sqrt())
        self._learn(embedded[valid], said)
        rest = sorted(set(range(len(images))) - set(chosen))
        values, weights = self._guessed(embedded, rest, said, error or 0.0)
        for number, value, weight in zip(rest, values, weights, strict=True):
            if weight > 0:
                scores.values[number], scores.weights[number] = value, weight
        return Scores(scores.values, scores.weights, scores.asked, scores.masked, scores.parts, error)

    def state(self) -> dict[str, torch.Tensor]:
        """What later epochs depend on, for a checkpoint: embeddings [M, D] and scores [M] of all that was answered."""
        return dict(self._learnt) if self.budget else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's `state`."""
        if state:
            self._learnt = dict(state)

    # -------------------------------------------------------------------------------------------- asking

    def _ask(self, epoch: int, numbers: Sequence[int], images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        """Raw values [len(numbers), rewards] of these pictures; NaN where there is none."""
        found = torch.zeros(len(images), len(self.rewards), dtype=torch.float64)
        if self._thread:
            answered, self._answers = self._answers, []
            for some, answer in answered:
                found[some] = answer.result()
        elif mine := list(distributed.shard(numbers) if self.divided else numbers):
            found[mine] = self._raw([images[i] for i in mine], [prompts[i] for i in mine])
        found = distributed.all_reduce(found) if self.divided else _agreed(found)
        for row, column in found.isinf().nonzero().tolist():
            name = list(self.rewards)[column]
            raise UserError(
                f"epoch {epoch + 1}: a reward is not finite: {name} of a picture of “{prompts[row]}”; the last good "
                "checkpoint is kept"
            )
        return found[list(numbers)]

    def _raw(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        """[N, rewards]: NaN where a reward says None; infinite where it is not finite, so that the two differ."""
        columns = [
            [math.nan if value is None else value if math.isfinite(value) else math.inf for value in given]
            for given in (reward(images, prompts) for reward in self.rewards.values())
        ]
        return torch.tensor(columns, dtype=torch.float64).T

    def _answered(self, numbers: list[int], raw: torch.Tensor, count: int | None = None) -> Scores:
        """Scores of `count` pictures of which those with these numbers were asked about."""
        values: list[float | None] = [None] * (count or len(numbers))
        for number, row in zip(numbers, raw.tolist(), strict=True):
            if not any(map(math.isnan, row)):
                values[number] = self.total(dict(zip(self.rewards, row, strict=True)))
        weights = [0.0 if value is None else 1.0 for value in values]
        means = raw.nanmean(0).tolist()
        parts = {name: mean for name, mean in zip(self.rewards, means, strict=True) if not math.isnan(mean)}
        return Scores(values, weights, len(numbers), len(numbers) - int(sum(weights)), parts)

    # -------------------------------------------------------------------------------------------- choosing

    def _choose(
        self, epoch: int, budget: Budget, model: surrogate.Surrogate, x: torch.Tensor, prompts: list[str]
    ) -> list[int]:
        """The numbers of the pictures to ask about.

        At random equally many of every prompt are chosen, since advantages compare within one.
        """
        groups = prompts if budget.per_prompt else [""] * len(prompts)
        if budget.acquisition == "uncertainty":
            chosen = surrogate.most_telling(model, x, budget.questions, groups)
        else:
            dice = torch.Generator().manual_seed(noise_seed(budget.seed, "feedback", epoch))
            left, chosen = surrogate.quotas(groups, budget.questions), []
            for number in torch.randperm(len(groups), generator=dice).tolist():
                if left[groups[number]]:
                    left[groups[number]] -= 1
                    chosen.append(number)
        return sorted(_agreed(torch.tensor(chosen)).tolist())

    # -------------------------------------------------------------------------------------------- the surrogate

    def _standardised(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings answered about [M, D + 1] and present ones [N, D + 1], each dimension centred and scaled by both.

        The last column is 1.
        """
        known = self._learnt["embeddings"] if len(self._learnt["scores"]) else embedded[:0]
        both = torch.cat([known, embedded])
        scaled = (both - both.mean(0)) / both.std(0, correction=0).clamp(min=1e-9) / math.sqrt(both.shape[1])
        ones = torch.cat([scaled, torch.ones(len(both), 1, dtype=both.dtype)], 1)
        return ones[: len(known)], ones[len(known) :]

    def _learn(self, embedded: torch.Tensor, said: torch.Tensor) -> None:
        old = self._learnt if len(self._learnt["scores"]) else {"embeddings": embedded[:0], "scores": said[:0]}
        self._learnt = {
            "embeddings": torch.cat([old["embeddings"], embedded])[-MEMORY:],
            "scores": torch.cat([old["scores"], said])[-MEMORY:],
        }

    def _guessed(
        self, embedded: torch.Tensor, rest: list[int], said: torch.Tensor, error: float
    ) -> tuple[list[float], list[float]]:
        """Scores and weights of the pictures that nobody was asked about, by a surrogate that was off by `error`."""
        weight = self.budget.surrogate_weight if self.budget else 0.0
        if not weight or len(said) < 2:
            return [0.0] * len(rest), [0.0] * len(rest)
        known, new = self._standardised(embedded)
        answers = self._learnt["scores"]
        expected, deviation = surrogate.fit(known, self._centred(answers)).predict(new[rest])
        variance = deviation.square().clamp(min=error**2)
        weights = weight * (1 - variance / said.var(correction=0).clamp(min=1e-12)).clamp(min=0)
        both = _agreed(torch.stack([expected + answers.mean(), weights]))
        return both[0].tolist(), both[1].tolist()

    @staticmethod
    def _centred(scores: torch.Tensor) -> torch.Tensor:
        return scores - scores.mean() if len(scores) else scores


def _agreed(tensor: torch.Tensor) -> torch.Tensor:
    """The first process's, in every process: what is computed twice may differ in the last digit."""
    return distributed.all_reduce(tensor if distributed.is_main() else torch.zeros_like(tensor))
