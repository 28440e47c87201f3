"""Numbers of different protocols never stand side by side."""

from pathlib import Path

import pytest

from t2i_feedback.arms import by_name
from t2i_feedback.reporting import protocols
from t2i_feedback.reporting.evidence import MeasuredArm

CARD = {"n": 8, "extractor": "clip", "resolution": 256, "judge_reading": "probability"}


def arm(name: str, **changes: object) -> MeasuredArm:
    return MeasuredArm(by_name(name), Path(), {"fid": 1.0}, CARD | changes, measured={}, images={})


def test_arms_with_equal_cards_are_alike() -> None:
    arms = {name: arm(name) for name in ("raw", "enhanced")}
    assert protocols.split(arms) == (arms, {})
    assert protocols.split({}) == ({}, {})


@pytest.mark.parametrize("key", ["n", "extractor", "resolution"])
def test_an_arm_that_differs_in_anything_from_the_first_stands_apart(key: str) -> None:
    arms = {"raw": arm("raw"), "enhanced": arm("enhanced", **{key: 9}), "finetuned": arm("finetuned")}
    alike, apart = protocols.split(arms)
    assert (list(alike), list(apart)) == (["raw", "finetuned"], ["enhanced"])
    assert protocols.differences(arms["raw"].card, arms["enhanced"].card) == {key: (CARD[key], 9)}


def test_a_key_that_only_one_card_has_is_a_difference() -> None:
    assert protocols.differences(CARD, CARD | {"clip_score": "x"}) == {"clip_score": (None, "x")}


def test_counts_of_readings_are_no_difference() -> None:
    assert protocols.differences(CARD, CARD | {"judge_reading": "samples 7, text 1"}) == {}
