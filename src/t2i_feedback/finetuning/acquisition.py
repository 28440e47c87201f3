"""The scores of an epoch's images: which of them the user is asked about, and what is made of the others.

The user's opinion is the scarce thing. With a `Budget` only some of an epoch's images are asked about; a surrogate
(`finetuning.surrogate`), which has learnt from every answer so far, gives the others a score, and its weight in the
update is

    weight = surrogate_weight x max(0, 1 - variance of that score / variance of the epoch's answers)

so that it counts as far as it explains what tells images apart. The variance is the surrogate's own, but no less than
its squared error on the epoch's answers before it learnt from them.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from t2i_feedback.finetuning import surrogate
from t2i_feedback.finetuning.scores import NotFinite, Scores, from_reward
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed, photometry
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generator

Reward = Callable[[list[Image.Image], list[str]], Sequence[float | None]]
Embed = Callable[[list[Image.Image]], np.ndarray]  # N images -> [N, D]


@dataclass(frozen=True)
class Budget:
    """Fewer questions than images."""

    questions: int  # per epoch
    acquisition: Literal["random", "uncertainty"]
    surrogate_weight: float  # 0..1
    per_prompt: bool  # advantages compare images of one prompt
    embed: Embed
    seed: int


class Scorer:
    """Gives an epoch's images their scores.

    `rewards` is one reward, or several by name, of which `total` makes an image's score. A reward is given images as
    they are saved and their prompts; None says that it has no valid answer for an image, which then has no score.
    `describe_invalid` gives the end of a message about that: what was answered instead.

    Without a `budget` every image is asked about. With `overlap` a batch is asked about in a thread as soon as it is
    drawn, while the next is being drawn; the scores are the same. The processes share the asking, unless `divided` is
    false: then each asks about all images, and the main process's answers count.
    """

    def __init__(
        self,
        rewards: Reward | Mapping[str, Reward],
        total: Callable[[Mapping[str, float]], float] | None = None,
        *,
        budget: Budget | None = None,
        overlap: bool = False,
        divided: bool = True,
        describe_invalid: Callable[[], str] = lambda: "",
    ):
        self.rewards = rewards if isinstance(rewards, Mapping) else {"reward": rewards}
        self.total = total or (lambda raw: sum(raw.values()))
        self.budget, self.divided, self.describe_invalid = budget, divided, describe_invalid
        self._learner = surrogate.Learner()
        self._thread = ThreadPoolExecutor(1, "judging") if overlap else None
        self._pending: list[tuple[list[int], Future[torch.Tensor]]] = []

    @classmethod
    def of(
        cls,
        config: Finetune,
        rewards: Mapping[str, Reward],
        total: Callable[[Mapping[str, float]], float],
        seed: int,
        describe_invalid: Callable[[], str],
    ) -> "Scorer":
        """The scorer of a run with these parameters."""
        budget = None
        if config.acquisition != "all" and config.feedback_budget:
            budget = Budget(
                config.feedback_budget,
                config.acquisition,
                surrogate_weight=config.surrogate_weight,
                per_prompt=config.advantage == "per_prompt",
                embed=photometry.embeddings,
                seed=seed,
            )
        overlap, divided = config.overlap_judging, config.user != "file"
        return cls(rewards, total, budget=budget, overlap=overlap, divided=divided, describe_invalid=describe_invalid)

    def batch_is_drawn(self, epoch: int, indices: list[int], images: list[Image.Image], prompts: list[str]) -> None:
        """To be called when this process has drawn these images of the epoch: with `overlap`, asking begins."""
        if self._thread:
            self._pending.append((indices, self._thread.submit(self._raw, epoch, images, prompts)))

    def scores(self, epoch: int, images: list[Image.Image], prompts: list[str]) -> Scores:
        """The scores of all N images of the epoch, the same in every process.

        Raises UserError when a reward is not finite.
        """
        everything = list(range(len(images)))
        if self.budget is None:
            return self._totals(everything, self._ask(epoch, everything, images, prompts), len(images))
        embedded = torch.from_numpy(np.asarray(self.budget.embed(images), dtype=np.float64))
        model, x = self._learner.fit(embedded)
        chosen = self._choose(epoch, self.budget, model, x, prompts)
        scores = self._totals(chosen, self._ask(epoch, chosen, images, prompts), len(images))
        answered = sorted(index for index in chosen if not scores.values[index].isnan())
        answers = scores.values[answered]
        error = None
        if self._learner.answers and answered:
            expected = model.predict(x[answered])[0] + self._learner.mean
            error = float((expected - answers).square().mean().sqrt())
        self._learner.learn(embedded[answered], answers)
        if self.budget.surrogate_weight and len(answered) >= 2:
            rest = torch.tensor(sorted(set(everything) - set(chosen)), dtype=torch.long)
            values, weights = self._predict(embedded, rest, answers, error or 0.0, self.budget.surrogate_weight)
            scores.values[rest[weights > 0]] = values[weights > 0]
            scores.weights[rest[weights > 0]] = weights[weights > 0]
        return replace(scores, surrogate_error=error)

    def state(self) -> dict[str, torch.Tensor]:
        """What later epochs depend on, for a checkpoint: embeddings [M, D] and scores [M] of all that was answered."""
        return self._learner.state() if self.budget else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's `state`."""
        if state:
            self._learner.load(state)

    # -------------------------------------------------------------------------------------------- asking

    def _ask(self, epoch: int, indices: list[int], images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        """Raw values [len(indices), rewards] of these images; NaN where there is none."""
        found = torch.zeros(len(images), len(self.rewards), dtype=torch.float64)
        if self._thread:
            pending, self._pending = self._pending, []
            for some, answers in pending:
                found[some] = answers.result()
        elif mine := list(distributed.shard(indices) if self.divided else indices):
            found[mine] = self._raw(epoch, [images[i] for i in mine], [prompts[i] for i in mine])
        found = distributed.all_reduce(found) if self.divided else distributed.broadcast(found)
        return found[indices]

    def _raw(self, epoch: int, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        """Raw values [len(images), rewards]; NaN where there is none. Raises UserError when one is not finite."""
        columns = []
        for name, reward in self.rewards.items():
            try:
                columns.append(from_reward(reward(images, prompts)))
            except NotFinite as error:
                raise UserError(
                    f"epoch {epoch + 1}: a reward is not finite: {name} of an image of “{prompts[error.index]}”; the "
                    "last good checkpoint is kept"
                ) from None
        return torch.stack(columns, 1)

    def _totals(self, indices: list[int], raw: torch.Tensor, count: int) -> Scores:
        """The scores of `count` images, of which those with these indices were asked about."""
        values = torch.full((count,), torch.nan, dtype=torch.float64)
        for index, row in zip(indices, raw, strict=True):
            if not row.isnan().any():
                values[index] = self.total(dict(zip(self.rewards, row.tolist(), strict=True)))
        masked = int(values[indices].isnan().sum())
        means = dict(zip(self.rewards, raw.nanmean(0), strict=True))
        parts = {name: float(mean) for name, mean in means.items() if not mean.isnan()}
        return Scores(values, torch.ones_like(values), len(indices), masked, parts)

    # -------------------------------------------------------------------------------------------- choosing

    def _choose(
        self, epoch: int, budget: Budget, model: surrogate.Surrogate, x: torch.Tensor, prompts: list[str]
    ) -> list[int]:
        """The indices of the images to ask about, first what the model is expected to learn most from: a person sees
        them in this order.

        At random equally many of every prompt are chosen, since advantages compare within one.
        """
        groups = prompts if budget.per_prompt else [""] * len(prompts)
        by_telling = surrogate.by_telling(model, x, groups)
        if budget.acquisition == "uncertainty":
            chosen = by_telling[: budget.questions]
        else:
            order = torch.randperm(len(groups), generator=generator(budget.seed, "feedback", epoch))
            left, some = surrogate.quotas(groups, budget.questions), set()
            for index in order.tolist():
                if left[groups[index]]:
                    left[groups[index]] -= 1
                    some.add(index)
            chosen = [index for index in by_telling if index in some]
        return distributed.broadcast(torch.tensor(chosen)).tolist()

    def _predict(
        self, embedded: torch.Tensor, rest: torch.Tensor, answers: torch.Tensor, error: float, surrogate_weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and weights of the images `rest`, not asked about, by a surrogate that was off by `error`."""
        model, x = self._learner.fit(embedded)
        expected, deviation = model.predict(x[rest])
        variance = deviation.square().clamp(min=error**2)
        weights = surrogate_weight * (1 - variance / answers.var(correction=0).clamp(min=1e-12)).clamp(min=0)
        # computed twice, a number may differ in its last digit: the main process's count
        values, weights = distributed.broadcast(torch.stack([expected + self._learner.mean, weights]))
        return values, weights
