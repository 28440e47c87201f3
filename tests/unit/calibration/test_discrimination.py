"""What is read from P(yes) of true and of false captions."""

import pytest

from t2i_feedback.calibration.discrimination import (
    auc,
    balanced_accuracy,
    best_threshold,
    calibration_error,
    reliability,
)


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ([0.8, 0.9], [0.1, 0.2], 1.0),
        ([0.1], [0.9], 0.0),
        ([0.5], [0.5], 0.5),
        ([0.2, 0.8], [0.4, 0.6], 0.5),
        ([0.6, 0.8], [0.5, 0.7, 0.1], 5 / 6),
    ],
)
def test_auc_is_the_chance_that_a_true_one_ranks_higher(true: list, false: list, expected: float) -> None:
    assert auc(true, false) == pytest.approx(expected)


def test_balanced_accuracy_weighs_both_kinds_alike() -> None:
    assert balanced_accuracy([0.9], [0.1, 0.2, 0.3, 0.6], 0.5) == pytest.approx((1 + 0.75) / 2)
    assert balanced_accuracy([0.5], [0.4], 0.5) == 1.0  # at the threshold is accepted


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ([0.3, 0.9], [0.1, 0.2], 0.25),  # the gap's middle
        ([0.9, 1.0], [0.6, 0.8], 0.85),
        ([1.0, 1.0], [0.0, 0.0], 0.5),  # parsed answers
        ([0.7, 0.6], [0.1, 0.2], 0.5),  # 0.5 itself where nothing is better
        ([0.4], [0.4], 0.5),
    ],
)
def test_the_best_threshold_lies_between_the_kinds(true: list, false: list, expected: float) -> None:
    assert best_threshold(true, false) == pytest.approx(expected)


def test_no_threshold_does_better_than_the_best() -> None:
    true, false = [0.2, 0.55, 0.7, 0.9, 0.95], [0.05, 0.1, 0.3, 0.6, 0.8]
    best = balanced_accuracy(true, false, best_threshold(true, false))
    assert best >= max(balanced_accuracy(true, false, step / 1000) for step in range(1001))


def test_reliability_gives_the_share_that_is_true_in_each_bin() -> None:
    [low, high] = reliability(true=[0.95, 0.95, 0.05, 0.95], false=[0.05, 0.05])
    assert (low.low, low.high, low.count) == (0.0, 0.1, 3)
    assert low.stated == pytest.approx(0.05)
    assert low.observed == pytest.approx((1 / 8) / (1 / 8 + 1 / 2))
    assert (high.observed, high.count) == (1.0, 3)
    assert low.weight + high.weight == pytest.approx(1)


def test_certainty_lies_in_the_last_bin() -> None:
    assert [(b.low, b.high) for b in reliability([1.0], [0.0])] == [(0.0, 0.1), (0.9, 1.0)]


def test_calibration_error_is_nothing_for_stated_shares_that_hold_and_large_for_certain_errors() -> None:
    assert calibration_error([0.25, 0.75, 0.75, 0.75], [0.75, 0.25, 0.25, 0.25]) == pytest.approx(0)
    assert calibration_error([0.0], [1.0]) == pytest.approx(1)
