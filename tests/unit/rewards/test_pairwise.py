"""Comparisons become scores by Bradley-Terry: finite, on the scale of the direct ones, and beside them."""

import math

import numpy as np
import pytest
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards import pairwise
from t2i_feedback.rewards.answers import Choice
from t2i_feedback.rewards.sheet import Sheet

PROMPTS = dict.fromkeys("abcdefgh", "a cat") | {"x": "a dog", "y": "a dog"}


def choice(left: str, right: str, better: str | None) -> Choice:
    return Choice(left=left, right=right, better=better, at="")


def scores(*choices: tuple[str, str, str | None], **direct: float) -> dict[str, float]:
    return pairwise.scores(PROMPTS, direct, [choice(*one) for one in choices])


def test_one_win_is_finite_and_solves_the_equation() -> None:
    found = scores(("a", "b", "left"))
    p = (found["a"] - 1) / 9  # sigmoid(s)
    s = math.log(p / (1 - p))
    assert 1 / (1 + math.exp(2 * s)) + 0.5 - p == pytest.approx(0, abs=1e-6)  # the derivative by s, where b's is -s
    assert (found["a"], found["b"]) == (pytest.approx(7.13, abs=0.01), pytest.approx(3.87, abs=0.01))


def test_the_side_and_the_order_do_not_matter_and_a_tie_is_half_a_win_each() -> None:
    assert scores(("a", "b", "left"), ("b", "c", "neither")) == scores(("c", "b", "neither"), ("b", "a", "right"))
    assert scores(("a", "b", "neither")) == {"a": 5.5, "b": 5.5}


def test_who_wins_more_has_more_and_the_mean_is_the_middle() -> None:
    found = scores(*((one, other, "left") for i, one in enumerate("abcd") for other in "abcd"[i + 1 :]))
    assert sorted(found, key=found.__getitem__, reverse=True) == list("abcd")
    assert sum(found.values()) / 4 == pytest.approx(5.5, abs=1e-6)
    assert all(1 < score < 10 for score in found.values())


def test_strengths_that_made_the_choices_are_found_again() -> None:
    rng = np.random.default_rng(0)
    names, true = "abcdefgh", np.linspace(-1.5, 1.5, 8)
    shares = tuple(
        (i, j, float((rng.random(200) < 1 / (1 + math.exp(true[j] - true[i]))).mean()))
        for i in range(8) for j in range(i + 1, 8) for _ in range(200)
    )  # fmt: skip
    found = np.array(pairwise.strengths(len(names), shares, (None,) * 8))
    assert np.abs(found - true).max() < 0.2


def test_the_last_choice_between_two_counts_and_none_takes_it_back() -> None:
    assert scores(("a", "b", "left"), ("b", "a", "left")) == scores(("b", "a", "left"))
    assert scores(("a", "b", "left"), ("a", "b", None)) == {}


def test_prompts_do_not_touch_each_other_and_what_is_no_pair_of_one_does_not_count() -> None:
    alone = scores(("a", "b", "left"))
    none = (("a", "x", "right"), ("b", "?", "left"), ("b", "b", "left"))
    assert scores(("a", "b", "left"), ("x", "y", "left"), *none) == alone | {"x": alone["a"], "y": alone["b"]}


def test_a_direct_score_stands_and_others_are_placed_by_it() -> None:
    high, low = (scores(("a", "b", "left"), a=score) for score in (9.0, 3.0))
    assert set(high) == {"b"} and low["b"] < high["b"] < 9.0 and low["b"] < 3.0 + 1
    better = scores(("a", "b", "right"), a=10.0)["b"]
    assert scores(("a", "b", "right"), a=5.5)["b"] < better < 10
    assert scores(("a", "b", "left"), a=1.0, b=10.0) == {}


@pytest.fixture
def sheet(tmp_path) -> Sheet:
    return Sheet(tmp_path / "sheet", "dark images")


def test_choices_and_scores_stand_in_one_file_and_a_sheet_reads_both(sheet: Sheet) -> None:
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 100, 200, 250)]
    a, b, c, lone = sheet.enter(images, ["a cat", "a cat", "a cat", "a dog"])
    sheet.compare(a, b, "left")
    assert {name: line.score is None for name, line in sheet.read().items()} == {
        a: False,
        b: False,
        c: True,
        lone: True,
    }
    assert sheet.unscored([a, b, c, lone]) == [c, lone]
    sheet.answer(a, 4.0)  # later: it stands, and b is below it
    assert sheet.read()[a].score == 4.0 and sheet.read()[b].score < 4.0
    sheet.answer(a, None)
    assert sheet.read()[a].score == pytest.approx(7.13, abs=0.01)
    sheet.compare(b, a, None)
    assert sheet.read()[a].score is None
    whole = sheet.answers.read_bytes()
    sheet.answers.write_bytes(whole + b'{"left": "' + a.encode())  # a crash cut it short
    assert sheet.read()[a].score is None
    sheet.compare(b, a, "neither")
    assert sheet.read()[a].score == 5.5


def test_only_two_images_of_one_prompt_can_be_compared(sheet: Sheet) -> None:
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    a, b = sheet.enter(images, ["a cat", "a dog"])
    for left, right in ((a, b), (a, a), (a, "../x.png"), ("x", "y")):
        with pytest.raises(UserError, match="no two images of one prompt"):
            sheet.compare(left, right, "left")
    assert not sheet.answers.exists()


def test_what_a_run_asked_about_is_kept_in_its_order(sheet: Sheet) -> None:
    assert sheet.asked() == []
    sheet.ask(["b.png", "a.png"])
    assert sheet.asked() == ["b.png", "a.png"]
