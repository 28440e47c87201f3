"""A light stand-in for the user: Bayesian linear regression from an image's embedding to its score.

    score = w · x + noise,    w ~ N(0, I / alpha),    noise ~ N(0, 1 / beta)

The posterior of w is N(mean, covariance) with covariance = (alpha I + beta XᵀX)⁻¹ and mean = beta covariance Xᵀy; alpha
and beta maximise the evidence (Bishop, "Pattern recognition and machine learning" (2006), 3.49-3.54 and 3.92-3.95).
All tensors are float64, so that every process finds the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROUNDS = 30  # of the fixed-point iteration for alpha and beta
MEMORY = 4096  # newest answers that the surrogate learns from
LEAST, MOST = 1e-6, 1e6  # bounds of alpha and beta: scores without any noise, or without any signal


@dataclass(frozen=True)
class Surrogate:
    """What is known of w [D], and how far the user's scores scatter around it."""

    mean: torch.Tensor  # [D]
    covariance: torch.Tensor  # [D, D]
    noise: float  # variance

    def predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [N] and standard deviation [N] of the scores of images with embeddings x [N, D]."""
        return x @ self.mean, (self.noise + spread(x, self.covariance)).sqrt()


def spread(x: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Variance [N] of w · x."""
    return ((x @ covariance) * x).sum(1).clamp(min=0)


def posterior(x: torch.Tensor, y: torch.Tensor, alpha: float, beta: float) -> Surrogate:
    """Given scores y [M] of embeddings x [M, D]; M may be 0."""
    precision = alpha * torch.eye(x.shape[1], dtype=x.dtype) + beta * x.T @ x
    covariance = torch.linalg.inv(precision)
    return Surrogate(beta * covariance @ (x.T @ y), covariance, 1 / beta)


def fit(x: torch.Tensor, y: torch.Tensor) -> Surrogate:
    """The same, with the alpha and beta of the largest evidence. Without a score it is the prior, of unit variance."""
    alpha, beta = 1.0, 1.0
    if len(y):
        strengths, vectors = torch.linalg.eigh(x.T @ x)
        strengths, projected = strengths.clamp(min=0), vectors.T @ (x.T @ y)
        for _ in range(ROUNDS):
            weights = beta * projected / (alpha + beta * strengths)
            effective = float((beta * strengths / (alpha + beta * strengths)).sum())  # parameters that data determines
            misfit = float((y - x @ (vectors @ weights)).square().sum())
            alpha = _bounded(effective / max(float(weights.square().sum()), 1 / MOST))
            beta = _bounded((len(y) - effective) / max(misfit, 1 / MOST))
    return posterior(x, y, alpha, beta)


def _bounded(value: float) -> float:
    return min(max(value, LEAST), MOST)


class Learner:
    """The surrogate from epoch to epoch: it remembers the newest MEMORY answers and is fitted to them."""

    def __init__(self) -> None:
        nothing = torch.zeros(0, dtype=torch.float64)
        self._embeddings, self._scores = nothing, nothing

    @property
    def answers(self) -> int:
        """How many it has learnt from."""
        return len(self._scores)

    @property
    def mean(self) -> torch.Tensor:
        """Mean score of the answers: what a fitted surrogate predicts is relative to it."""
        return self._scores.mean()

    def fit(self, embedded: torch.Tensor) -> tuple[Surrogate, torch.Tensor]:
        """The surrogate of all answers so far, and the embeddings [N, D] as it takes them, [N, D + 1].

        Each dimension is centred and scaled by the embeddings of answers and these together; the last column is 1.
        """
        known = self._embeddings if self.answers else embedded[:0]
        both = torch.cat([known, embedded])
        scaled = (both - both.mean(0)) / both.std(0, correction=0).clamp(min=1e-9) / math.sqrt(both.shape[1])
        ones = torch.cat([scaled, torch.ones(len(both), 1, dtype=both.dtype)], 1)
        centred = self._scores - self._scores.mean() if self.answers else self._scores
        return fit(ones[: len(known)], centred), ones[len(known) :]

    def learn(self, embedded: torch.Tensor, scores: torch.Tensor) -> None:
        """Remember the scores [M] that were answered for images with embeddings [M, D]."""
        old = (self._embeddings, self._scores) if self.answers else (embedded[:0], scores[:0])
        self._embeddings = torch.cat([old[0], embedded])[-MEMORY:]
        self._scores = torch.cat([old[1], scores])[-MEMORY:]

    def state(self) -> dict[str, torch.Tensor]:
        """Embeddings [M, D] and scores [M] of the answers."""
        return {"embeddings": self._embeddings, "scores": self._scores}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self._embeddings, self._scores = state["embeddings"], state["scores"]


def by_telling(surrogate: Surrogate, x: torch.Tensor, groups: Sequence[str]) -> list[int]:
    """The images x [N, D] in the order in which to ask about them: the largest expected squared advantage first.

    An image's advantage is its score less its group's mean, w · (x - mean x of the group), which has a mean and a
    variance: its expected square is mean² + variance. So what is asked about is what will move the policy most, or may,
    for all that is known. Before anything is known it is what differs most from the rest of its group.
    """
    centred = x.clone()
    for group in set(groups):
        members = [index for index, other in enumerate(groups) if other == group]
        centred[members] -= x[members].mean(0)
    expected = (centred @ surrogate.mean).square() + spread(centred, surrogate.covariance)
    return expected.argsort(descending=True, stable=True).tolist()


def quotas(groups: Sequence[str], count: int) -> dict[str, int]:
    """How many of each group to take so that it is `count` altogether and none is favoured by more than one."""
    sizes = {group: groups.count(group) for group in dict.fromkeys(groups)}
    taken = dict.fromkeys(sizes, 0)
    while sum(taken.values()) < count:
        for group in sizes:
            if taken[group] < sizes[group] and sum(taken.values()) < count:
                taken[group] += 1
    return taken
