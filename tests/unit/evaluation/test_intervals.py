import numpy as np
import pytest

from t2i_feedback.evaluation import intervals

RESAMPLES = 2000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy(n: int, mean: float, spread: float, seed: int) -> dict[int, float | None]:
    return dict(enumerate(np.random.default_rng(seed).normal(mean, spread, n).tolist()))


def test_mean_has_the_interval_of_the_central_limit_theorem() -> None:
    values = noisy(400, 5, 2, seed=1)
    found = intervals.mean(values, RESAMPLES, rng())
    numbers = list(values.values())
    half = 1.96 * np.std(numbers) / 20
    assert found is not None
    assert found.value == pytest.approx(np.mean(numbers))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)


def test_interval_covers_the_truth_about_95_times_of_100() -> None:
    covered = 0
    for seed in range(200):
        found = intervals.mean(noisy(60, 3, 1, seed), 400, rng(seed))
        assert found is not None
        covered += found.low <= 3 <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_pairing_removes_what_both_arms_share() -> None:
    easy = noisy(100, 50, 20, seed=2)
    jitter = noisy(100, 1, 0.5, seed=3)
    better = {i: easy[i] + jitter[i] for i in easy}
    paired = intervals.difference(better, easy, RESAMPLES, rng())
    assert paired is not None
    assert paired.low > 0
    assert paired.value == pytest.approx(np.mean(list(jitter.values())))
    assert paired.high - paired.low < 0.3


def test_pairs_with_none_are_left_out_and_counted() -> None:
    arm: dict[int, float | None] = {1: 1.0, 2: None, 3: 3.0, 4: 4.0}
    base: dict[int, float | None] = {1: 0.0, 2: 2.0, 3: None, 4: 1.0, 5: 9.0}
    found = intervals.difference(arm, base, RESAMPLES, rng())
    assert found is not None
    assert (found.value, found.n, found.left_out) == (2.0, 2, 3)
    assert (found.low, found.high) == (1.0, 3.0)


def test_ratio_is_of_means_not_a_mean_of_ratios() -> None:
    arm: dict[int, float | None] = {1: 1.0, 2: 9.0}
    base: dict[int, float | None] = {1: 2.0, 2: 8.0}
    found = intervals.ratio(arm, base, RESAMPLES, rng())
    assert found is not None
    assert found.value == 1.0
    assert (found.low, found.high) == (0.5, 1.125)


def test_ratio_of_a_constant_share_has_no_width() -> None:
    base = {i: float(i % 7 + 1) for i in range(50)}
    found = intervals.ratio({i: 0.9 * value for i, value in base.items()}, base, RESAMPLES, rng())
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))


def test_nothing_measured_gives_no_interval() -> None:
    assert intervals.mean({1: None, 2: None}, RESAMPLES, rng()) is None
    assert intervals.mean({}, RESAMPLES, rng()) is None
    assert intervals.difference({1: 1.0}, {1: None}, RESAMPLES, rng()) is None
    assert intervals.ratio({1: 1.0, 2: 1.0}, {1: 0.0, 2: 0.0}, RESAMPLES, rng()) is None


def test_equal_generators_give_equal_intervals() -> None:
    values = noisy(50, 0, 1, seed=4)
    assert intervals.mean(values, 200, rng(7)) == intervals.mean(values, 200, rng(7))
    assert intervals.mean(values, 200, rng(7)) != intervals.mean(values, 200, rng(8))
