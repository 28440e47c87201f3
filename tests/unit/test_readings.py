"""How answers are read: scores, yes or no, and prompts."""

import pytest

from t2i_feedback.mllm.roles import clean_prompt, parse_score, parse_yes


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7),
        ("7/10", 7),
        ("7 / 10", 7),
        ("Score: 7", 7),
        ("**8**", 8),
        ("I would rate it 6 out of 10.", 6),
        ("10", 10),
        ("10/10", 10),
        ("7.5", 7.5),
        ("Rating: 3.", 3),
        ("The 2 houses are dark: 9/10", 9),
        ("7, 7", 7),
        ("0", None),
        ("11", None),
        ("85", None),
        ("-3", None),
        ("85/100", None),
        ("4 or 5", None),
        ("between 6-8", None),
        ("ten", None),
        ("", None),
        ("yes", None),
    ],
)
def test_parse_score(text: str, score: float | None) -> None:
    assert parse_score(text) == score


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("yes, it does.", True),
        ("No.", False),
        ("NO", False),
        ("The answer is yes.", True),
        ("No, yes would be wrong", False),
        ("It may be yes or no", None),
        ("I know nothing", None),
        ("", None),
        ("7", None),
    ],
)
def test_parse_yes(text: str, yes: bool | None) -> None:
    assert parse_yes(text) is yes


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ('"A red house on a hill."', "A red house on a hill."),
        ('Sure! Here is a detailed prompt:\n\n"A red house"', "A red house"),
        ("Certainly, here's an enhanced prompt for your caption: A red house", "A red house"),
        ("Prompt: A red house", "A red house"),
        ("**Enhanced prompt:** A red house", "A red house"),
        ("1. A red house", "A red house"),
        ("- a red house\n- a tree", "a red house a tree"),
        ("  A red\n house  ", "A red house"),
        ("“A red house”", "A red house"),
        ("a beach: a small red house", "a beach: a small red house"),
        ("Here comes a train: red", "Here comes a train: red"),
        ('"a" and "b"', '"a" and "b"'),
        ("2 dogs on a beach", "2 dogs on a beach"),
        ("", ""),
    ],
)
def test_clean_prompt(text: str, prompt: str) -> None:
    assert clean_prompt(text) == prompt
