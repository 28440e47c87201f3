"""How answers are read: scores, yes or no, prompts and lists."""

import re
import typing

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from t2i_feedback.foundation.rows import Status
from t2i_feedback.mllm import readings, roles
from t2i_feedback.mllm.base import Reply
from t2i_feedback.mllm.readings import clean_prompt, parse_items, parse_reason, parse_score, parse_yes, without_thinking


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
        ("7. The palette is dark.", 7),
        ("7 because it is dark", 7),
        ("I'd rate this image an 8", 8),
        ("My rating is 4. There are 2 houses.", 4),
        ("10 out of 10", 10),
        ('{"score": 7}', 7),
        ('```json\n{"score": 7}\n```', 7),
        ("0", None),
        ("11", None),
        ("85", None),
        ("-3", None),
        ("85/100", None),
        ("4 or 5", None),
        ("between 6-8", None),
        ("ten", None),
        ("seven", None),
        ("between 3 and 8", None),
        ("Score: between 3 and 8", None),
        ("Score: 6, or maybe 9", None),
        ("6 or 7", None),
        ("6, or maybe 9", None),
        ("7. There are 2 houses", None),
        ("3 houses", None),
        ("There are 5 trees.", None),
        ("1. dark\n2. blurred", None),
        ("8/100", None),
        ("7,5", None),
        ("70%", None),
        ("3rd", None),
        ("v1.2.3", None),
        ("Score: -3", None),
        ("2024-05-06", None),
        ('{"score": 11}', None),
        ('{"score": 7', None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"rating": 7}', None),
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
        ("No - the house is red", False),
        ("No the house is red", False),
        ("Yes it does", True),
        ('{"answer": "no", "reason": "yes"}', False),
        ("Yes, there are no trees", True),
        ("Yes, no-one is missing", True),
        ("No, there is no fish. No, none.", False),
        ("Yes, no", None),
        ("Yes; no.", None),
        ("yes, but the house is not red so no", None),
        ("No, but yes, it is dark", None),
        ("It may be yes or no", None),
        ("Yes or no?", None),
        ("yes/no", None),
        ("yes no", None),
        ("No doubt, it shows everything", None),
        ("No problem!", None),
        ("There is no house, so all is well", None),
        ("I would not say yes", None),
        ("The answer is yes or no", None),
        ('{"answer": "maybe"}', None),
        ('{"answer": "yes"', None),
        ('{"answer": ["yes"]}', None),
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("No, the fish is red.", "the fish is red"),
        ("no\nIt is  red", "It is red"),
        ('{"answer": "no", "reason": "the fish is red"}', "the fish is red"),
        ("No.", None),
        ("no", None),
    ],
)
def test_parse_reason(text: str, reason: str | None) -> None:
    assert parse_reason(text) == reason


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a red house; a yellow sun on the left; a beach", ["a red house", "a yellow sun on the left", "a beach"]),
        ("1. Is there a house?\n2. Is it red?\n", ["Is there a house?", "Is it red?"]),
        ("Here are the questions:\n- Is there a house?\n- Is it red?", ["Is there a house?", "Is it red?"]),
        ('"a house"; a house.; ;', ["a house"]),
        ("", []),
        (" ; \n.", []),
        ("; ".join(f"item {i}" for i in range(12)), [f"item {i}" for i in range(12)]),
        ("; ".join(f"item {i}" for i in range(13)), []),
    ],
)
def test_parse_items(text: str, items: list[str]) -> None:
    assert parse_items(text) == items


# ------------------------------------------------------------------------------------------------ thinking

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</Thought>"),
    ("<REASONING>", "</REASONING>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_what_a_model_thinks_is_not_its_answer(opening: str, closing: str) -> None:
    thought = f"{opening}I could say the score is 8, but it is far too bright.{closing}\n3"
    assert parse_score(thought) == 3
    assert parse_yes(f"{opening}Is it there? The answer: no... wait, there it is.{closing}\nYes") is True
    assert parse_reason(f"{opening}no, it is blue{closing}No, the fish is red.") == "the fish is red"
    assert clean_prompt(f"{opening}\n\n{closing}\n\n**Prompt:** A red house") == "A red house"
    assert parse_items(f"{opening}\na list;\nof what?\n{closing}\na house; a sun") == ["a house", "a sun"]
    assert parse_score(f'{opening}8{closing}{{"score": 3}}') == 3
    assert readings.is_json(f'{opening}8{closing}{{"score": 3}}')


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_thinking_whose_beginning_stood_in_the_template_ends_all_the_same(opening: str, closing: str) -> None:
    assert parse_score(f"The score is 8. No.{closing}\n\n3") == 3
    assert parse_yes(f"Yes? {opening} no {closing} hm {closing} No.") is False
    assert clean_prompt(f"They want a house.{closing}A red house") == "A red house"


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_after_thinking_that_has_no_end_nothing_was_answered(opening: str, closing: str) -> None:
    for thought in (f"{opening}The score is 8. Yes", f"Yes: 8 {opening} or", f"{opening}8{closing} 3 {opening}or 4"):
        assert without_thinking(thought) == ""
        assert parse_score(thought) is None
        assert parse_yes(thought) is None
        assert readings.typed(Reply("valid", thought), "enhance").status == "unparseable"


@pytest.mark.parametrize(
    "text", ["I think it is a 7", "a <b>red</b> house", " a [thinking] man ", "a thought: <7>", ""]
)
def test_what_is_no_thinking_stays_as_it_is(text: str) -> None:
    assert without_thinking(text) == text


def test_a_reply_is_typed_by_what_stands_after_the_thinking_and_says_no_more() -> None:
    reply = readings.typed(Reply("valid", "<think>I'm sorry?</think>\nA red house"), "enhance")
    assert (reply.status, reply.text) == ("valid", "A red house")
    assert readings.typed(Reply("valid", "<think>A house</think>I'm sorry, no."), "enhance").status == "refusal"
    silent = readings.typed(Reply("valid", "<think>The score is 8"), "judge")
    assert (silent.status, silent.text) == ("unparseable", "<think>The score is 8")  # said where answers are invalid


def test_a_probability_that_was_read_where_the_thinking_began_is_none() -> None:
    """Of a local model that would think first, or kept by an earlier version."""
    read = {"probabilities": {"yes": 0.9, "no": 0.1}, "mass": 0.1, "reading": "probability"}
    whole = readings.typed(Reply("valid", "<think>yes?</think>No.", **read), "validate")
    assert (whole.status, whole.probabilities, whole.reading) == ("valid", None, "text")
    assert roles._verdict(whole).p_yes == 0.0
    assert readings.typed(Reply("valid", "<think>", **read), "validate").status == "unparseable"


# ------------------------------------------------------------------------------------------------ whatever is said

ROLES = ("enhance", "validate", "feedback", "judge", "questions", "question")
SCRAPS = (
    *("7", "10", "0", "7.5", "7/10", " out of 10", "score", "Score:", "rate it", "yes", "no", "No", "Yes", "and", "or"),
    *("answer is", "-", "–", ".", ",", "/", "\n", " ", "{", "}", '"', '{"score":', '{"answer":', "houses", "I'm sorry"),
    *("<think>", "</think>", "[THINK]", "[/THINK]"),
)
said = st.one_of(st.text(), st.lists(st.sampled_from(SCRAPS), max_size=8).map(" ".join))
count = st.integers(2, 99)
counted = st.builds("{} {}".format, count, st.sampled_from(("houses", "trees of 3 kinds", "red suns", "people")))
innocent = st.sampled_from(("The image is dark", "I see", "It shows", "a muted palette", "nothing else"))
between = st.sampled_from((" or ", " to ", "-", " – ", " ", ", ", "; ", ", or maybe "))


@settings(max_examples=400)
@given(said, st.sampled_from(ROLES))
def test_any_text_is_a_typed_outcome(text: str, role: str) -> None:
    reply = readings.typed(Reply("valid", text), role)
    assert reply.status in typing.get_args(Status)
    score, verdict, prompt = roles._score(reply), roles._verdict(reply), roles._text_outcome(reply)
    for outcome, value in ((score, score.value), (verdict, verdict.p_yes), (prompt, prompt.value)):
        assert (value is not None) == (outcome.status == "valid")
    assert score.value is None or 1 <= score.value <= 10
    assert verdict.p_yes in (None, 0.0, 1.0)


@settings(max_examples=400)
@given(said)
def test_no_number_is_read_that_the_text_does_not_hold(text: str) -> None:
    score = parse_score(text)
    assert score is None or score in {float(number) for number in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)}


@given(st.lists(st.one_of(counted, innocent), min_size=1).map(". ".join))
def test_what_is_counted_is_no_score(text: str) -> None:
    assert parse_score(text) is None


@given(st.integers(1, 10), st.integers(1, 10), between, st.sampled_from(("", "Score: ", "I rate it ")))
def test_two_numbers_are_no_score(first: int, second: int, between: str, before: str) -> None:
    assume(first != second)
    assert parse_score(f"{before}{first}{between}{second}") is None


@given(st.integers(1, 10), st.lists(counted, max_size=3), st.sampled_from(("{}/10", "Score: {}", "I rate it {}.")))
def test_a_marked_score_is_read_whatever_is_counted_beside_it(score: int, beside: list[str], form: str) -> None:
    assert parse_score(". ".join([*beside, form.format(score)])) == score


@settings(max_examples=400)
@given(said)
def test_no_verdict_is_read_that_the_text_does_not_hold(text: str) -> None:
    yes = parse_yes(text)
    assert yes is None or re.search(rf"\b{'yes' if yes else 'no'}\b", text.lower())


contrary = st.sampled_from((("yes", "no"), ("No", "yes")))
turn = st.sampled_from((", ", "; ", ". ", " - ", "\n", " but ", ", but the house is not red, so ", ". The answer is "))


@given(contrary, turn, st.sampled_from(("", ".", "!", ", it does not", " because it is red", "\nThe house is red")))
def test_a_yes_and_a_no_that_both_stand_alone_are_no_verdict(words: tuple[str, str], turn: str, end: str) -> None:
    assert parse_yes(f"{words[0]}{turn}{words[1]}{end}") is None


@settings(max_examples=300)
@given(said)
def test_a_prompt_is_one_line_of_the_models_own_words(text: str) -> None:
    prompt = clean_prompt(text)
    assert prompt == " ".join(prompt.split())
    assert set(prompt.replace(" ", "")) <= set(text)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=20, unique=True))
def test_every_item_of_a_list_is_there_or_none(numbers: list[int]) -> None:
    items = [f"item {number}" for number in numbers]
    assert parse_items("; ".join(items)) == (items if len(items) <= readings.MAX_ITEMS else [])


@settings(max_examples=300)
@given(said)
def test_items_are_few_short_of_lines_and_each_once(text: str) -> None:
    items = parse_items(text)
    assert len(set(items)) == len(items) <= readings.MAX_ITEMS
    assert not any(re.search(r"[;\n]", item) or not item.strip() for item in items)


@settings(max_examples=300)
@given(said)
def test_thinking_is_taken_out_whole(text: str) -> None:
    left = without_thinking(text)
    assert not re.search(r"</?think>|\[/?THINK\]", left, re.IGNORECASE)
    assert without_thinking(left) == left
