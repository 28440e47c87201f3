"""How close an arm's images are to real images, from features [N, D] and class logits [N, C] of an extractor.

All but the Frechet distance is torch-fidelity's arithmetic. The Frechet distance is computed here in the space of the
fewer of images and dimensions: exact, and fast enough to be resampled a thousand times.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2i_feedback.evaluation.section import Evaluate

Features = NDArray[np.float32]  # [N, D]
CURVE_STEPS, CURVE_SUBSETS = 8, 10  # FID against n: subsets of 1/8, 2/8, .. of the images, so many of each
PIECE = 1000  # rows of a matrix of distances: that of all pairs of 40,000 images would be 6.4 GB
THREADS_PAY_FROM = 1000  # rows of a matrix; the eigenvalues of smaller ones take ten times longer on several threads


@dataclass(frozen=True)
class Spread:
    """A number and its standard deviation (over what, each function says)."""

    value: float
    std: float


class FrechetDistance:
    """|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^1/2) of a reference and any resampling of an arm's images.

    Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (2017).

    With S2 = R R' the eigenvalues of S1 S2 are those of R' S1 R, and S1 = A' A for A the arm's centred rows divided by
    sqrt(n - 1). So the last trace is the sum of the singular values of A R, an [n, min(m, D)] matrix of which a
    resample merely picks and centres rows.
    """

    def __init__(self, features: Features, reference: Features) -> None:
        real = reference.astype(np.float64)
        centre = real.mean(axis=0)
        triangle = np.asarray(np.linalg.qr(real - centre, mode="r"))
        root = triangle.T / np.sqrt(len(real) - 1)  # R: [D, min(m, D)]
        self._rows = features.astype(np.float64) - centre
        self._squares = (self._rows**2).sum(axis=1)
        self._projected = self._rows @ root
        self._reference_trace = (root**2).sum()

    def __call__(self, counts: NDArray[np.int64] | None = None) -> float:
        """The distance when image i is there counts[i] times; by default every image once."""
        if counts is None:
            counts = np.ones(len(self._rows), dtype=np.int64)
        n = int(counts.sum())
        shift = counts @ self._rows / n
        trace = (counts @ self._squares - n * shift @ shift) / (n - 1)
        kept = counts > 0
        projected = self._projected[kept] - counts @ self._projected / n
        projected *= np.sqrt(counts[kept, None] / (n - 1))
        small = projected @ projected.T if projected.shape[0] < projected.shape[1] else projected.T @ projected
        covariance = np.sqrt(np.linalg.eigvalsh(small).clip(min=0)).sum()
        return float(shift @ shift + trace + self._reference_trace - 2 * covariance)

    def resample(self, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Distances [resamples] of bootstrap resamples of the arm's images; the reference stays as it is.

        Their spread is the distance's uncertainty. Their mean is above the distance, since a resample with its
        duplicates is less varied than the arm: it estimates nothing. With equal generators the resamples of two arms
        hold the same captions, so the differences of the two arrays are paired.
        """
        n = len(self._rows)
        return np.array([self(rng.multinomial(n, np.full(n, 1 / n))) for _ in range(resamples)])

    def by_n(self, rng: np.random.Generator) -> list[tuple[int, Spread]]:
        """The distance of fewer images: (n, mean and spread over random subsets without repetition), n rising.

        The last has all images: no spread. The distance falls with n, so only distances of one n can be compared:
        Chong & Forsyth, "Effectively unbiased FID and Inception Score and where to find them" (2020).
        """
        n = len(self._rows)
        points = []
        for size in sorted({n * step // CURVE_STEPS for step in range(1, CURVE_STEPS)} - {0, 1}):
            distances = [self(_subset(n, size, rng)) for _ in range(CURVE_SUBSETS)]
            points.append((size, Spread(float(np.mean(distances)), float(np.std(distances, ddof=1)))))
        return [*points, (n, Spread(self(), 0.0))]


def _subset(n: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each of n images is in a random subset: once or not at all."""
    counts = np.zeros(n, dtype=np.int64)
    counts[rng.choice(n, size, replace=False)] = 1
    return counts


def inception_score(logits: Features, splits: int, seed: int) -> Spread:
    """exp of the mean KL(p(y|x) || p(y)), averaged over `splits` parts of the shuffled images; spread over parts.

    Salimans et al., "Improved techniques for training GANs" (2016). It grows with the images per part.
    """
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    answer = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=True, rng_seed=seed)
    return Spread(answer[KEY_METRIC_ISC_MEAN], answer[KEY_METRIC_ISC_STD])


def kernel_distance(features: Features, reference: Features, subset: int, subsets: int, seed: int) -> Spread:
    """Unbiased squared MMD under the kernel (x'y / D + 1)^3; mean and spread over random subsets (KID).

    Binkowski et al., "Demystifying MMD GANs" (2018). It may be slightly below 0.
    """
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    answer = kid_features_to_metric(
        torch.from_numpy(features),
        torch.from_numpy(reference),
        kid_subset_size=subset,
        kid_subsets=subsets,
        rng_seed=seed,
        verbose=False,
    )
    return Spread(answer[KEY_METRIC_KID_MEAN], answer[KEY_METRIC_KID_STD])


def precision_recall(features: Features, reference: Features, neighbourhood: int) -> tuple[float, float]:
    """Shares of images within the real images' manifold, and of real images within the images'.

    A manifold is the union of balls that reach to each point's k-th neighbour. Kynkaanniemi et al., "Improved precision
    and recall metric for assessing generative models" (2019); they use VGG-16 features, here they are the extractor's.
    More than `PIECE` images are compared piece by piece.
    """
    import torch
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    answer = prc_features_to_metric(
        torch.from_numpy(features),
        torch.from_numpy(reference),
        prc_neighborhood=neighbourhood,
        prc_batch_size=PIECE,
        save_cpu_ram=max(len(features), len(reference)) > PIECE,
        verbose=False,
    )
    return answer[KEY_METRIC_PRECISION], answer[KEY_METRIC_RECALL]


def diversity(features: Features) -> float:
    """Mean cosine distance of the features over all pairs of images, each of another caption: 0 = all alike."""
    rows = features.astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n, total = len(unit), unit.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))


@dataclass(frozen=True)
class Fidelity:
    numbers: dict[str, float]  # by name
    resamples: NDArray[np.float64]  # Frechet distances of the arm's bootstrap resamples
    by_n: list[tuple[int, Spread]]  # Frechet distance against the number of images


def measure(
    features: Features, logits: Features | None, reference: Features, protocol: Evaluate, seed: int
) -> Fidelity:
    """Everything of this module for an arm. Without logits there is no Inception Score: it is left out."""
    from threadpoolctl import threadpool_limits

    threads = 1 if min(*features.shape, len(reference)) < THREADS_PAY_FROM else None
    with threadpool_limits(threads, user_api="blas"):
        frechet = FrechetDistance(features, reference)
        fids = frechet.resample(protocol.resamples, np.random.default_rng(seed))
        kernel = kernel_distance(features, reference, protocol.kid_subset, protocol.kid_subsets, seed)
        fid = frechet()
        by_n = frechet.by_n(np.random.default_rng(seed))
    precision, recall = precision_recall(features, reference, protocol.neighbourhood)
    numbers = {
        "fid": fid,
        "fid_std": float(fids.std(ddof=1)),
        "kid": kernel.value,
        "kid_std": kernel.std,
        "precision": precision,
        "recall": recall,
        "diversity": diversity(features),
    }
    if logits is not None:
        score = inception_score(logits, protocol.splits, seed)
        numbers |= {"is": score.value, "is_std": score.std}
    return Fidelity(numbers, fids, by_n)
