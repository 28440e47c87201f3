"""Whatever is sent becomes a typed outcome: text that can be encoded, finite numbers, and its usage booked."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i_feedback.mllm import completion, readings, replies
from t2i_feedback.mllm.base import Decoding, Reply, Request
from t2i_feedback.mllm.readings import SCORES, YES_NO

REQUEST = Request("is it there?", Image.new("RGB", (2, 2)), role="judge")
ROLES = ("enhance", "validate", "feedback", "judge", "questions", "question", "vqa")
LIMIT = 96


def read(said: object, candidates: tuple[str, ...] = (), **more) -> Reply:
    return completion.read(said, REQUEST, Decoding(LIMIT, candidates), 0.5, LIMIT, **more)


def said(content: object, finish: object = "stop", usage: object = None, **message) -> dict:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage}


def check(reply: Reply, role: str = "judge") -> None:
    for one in (reply, readings.typed(reply, role)):
        one.text.encode("utf-8")
        json.dumps([one.tokens_in, one.tokens_out, one.tokens_thinking, one.seconds], allow_nan=False)
        assert min(one.tokens_in, one.tokens_out, one.tokens_thinking) >= 0
        numbers = [*(one.probabilities or {}).values(), one.mass or 0.0]
        assert all(math.isfinite(number) for number in numbers)
        assert one.probabilities is None or (one.status == "valid" and sum(numbers[:-1]) == pytest.approx(1))


# ------------------------------------------------------------------------------------------------ anything at all

texts = st.text(st.characters(), max_size=60) | st.sampled_from(
    ["", "7", "Yes", "<think>", "</think>", "<think>8</think>\n3", "\ud800", "a\x00b", "<|channel|>final<|message|>7"]
)
numbers = st.integers() | st.floats() | st.none() | st.booleans() | texts
anything = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=12
)
tokens = st.fixed_dictionaries(
    {},
    optional={
        "token": texts | anything,
        "logprob": numbers,
        "top_logprobs": st.lists(st.fixed_dictionaries({"token": texts, "logprob": numbers}) | anything, max_size=3)
        | anything,
    },
)
messages = st.fixed_dictionaries(
    {},
    optional={"content": texts | anything, "reasoning": anything, "reasoning_content": anything, "refusal": anything},
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "message": messages | anything,
        "finish_reason": st.sampled_from(["stop", "length", "content_filter", "tool_calls"]) | anything,
        "logprobs": st.fixed_dictionaries({"content": st.lists(tokens | anything, max_size=3) | anything}) | anything,
    },
)
usages = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), numbers | anything)
)
completions = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(choices | anything, max_size=2) | anything,
        "usage": usages | anything,
        "error": anything,
        "model": anything,
    },
)


@settings(max_examples=600, deadline=None)
@given(completions | anything, st.sampled_from([(), YES_NO, SCORES]), st.sampled_from(ROLES), st.booleans())
def test_any_json_becomes_a_typed_outcome(body: object, candidates: tuple[str, ...], role: str, off: bool) -> None:
    check(read(body, candidates, thinking_off=off), role)
    completion.gives_logprobs(body), completion.degenerate(body)
    completion.answered_by(body).encode()


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters()), st.sampled_from(ROLES))
def test_any_text_of_a_server_or_a_checkpoint_is_made_whole(text: str, role: str) -> None:
    check(read(said(text)), role)
    check(replies.whole(Reply("valid", text)), role)
    assert completion.parsed(text) is not NotImplemented


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(texts, st.floats() | st.integers(), max_size=3), st.floats() | st.none())
def test_any_numbers_that_were_kept_are_finite_or_none(probabilities: dict[str, float], mass: float | None) -> None:
    reply = replies.whole(Reply("valid", "7", probabilities, mass, reading="probability"))
    assert all(math.isfinite(share) for share in (reply.probabilities or {}).values())
    assert reply.mass is None or math.isfinite(reply.mass)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), texts, st.sampled_from(["stop", "length", "content_filter"]))
def test_usage_is_booked_whatever_the_answer_is(asked: int, written: int, text: str, finish: str) -> None:
    reply = read(said(text, finish, {"prompt_tokens": asked, "completion_tokens": written}))
    assert (reply.tokens_in, reply.tokens_out) == (asked, written)
    assert reply.status != "valid" or written < LIMIT


# ------------------------------------------------------------------------------------------------ cases


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (1004, 1)),
        ({}, (1004, 1)),
        ({"prompt_tokens": 5}, (5, 1)),
        ({"completion_tokens": 7}, (1004, 7)),
        ({"prompt_tokens": None, "completion_tokens": "9"}, (1004, 9)),
        ({"prompt_tokens": -3, "completion_tokens": float("nan")}, (1004, 1)),
        ({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 52}, (10, 42)),  # thinking in the total alone
        ([1, 2], (1004, 1)),
    ],
)
def test_what_usage_lacks_is_estimated(usage: object, tokens: tuple[int, int]) -> None:
    reply = read(said("7", usage=usage))
    assert (reply.status, reply.tokens_in, reply.tokens_out) == ("valid", *tokens)


def test_a_completion_without_choices_is_paid_for_all_the_same() -> None:
    reply = read(
        {"choices": None, "error": {"message": "upstream"}, "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    )
    assert (reply.status, reply.tokens_in, reply.tokens_out) == ("transport", 4, 2)
    assert "upstream" in reply.text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a red "}, {"type": "text", "text": "house"}], "a red house"),
        (["a red ", "house"], "a red house"),
        ({"type": "text", "text": "a red house"}, "a red house"),
        ([{"type": "output_text", "text": {"value": "a red house"}}], "a red house"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "8?"}]}, {"type": "text", "text": "3"}], "3"),
        ([{"type": "reasoning", "text": "8?"}, {"type": "text", "text": "3"}], "3"),
    ],
)
def test_parts_are_joined_and_thinking_parts_left_out(content: object, text: str) -> None:
    assert (read(said(content)).status, read(said(content)).text) == ("valid", text)


@pytest.mark.parametrize("finish", ["stop", None, "end_turn", "length"])
def test_an_answer_as_long_as_its_limit_is_truncated_whatever_the_server_says(finish: str | None) -> None:
    reply = read(said("half a prompt", finish, {"prompt_tokens": 1, "completion_tokens": LIMIT}))
    assert reply.status == "truncated"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>8 too bright</think>\n3", "3"),
        ("8? no.</think>3", "3"),
        ("<think>I could say the score is 8", ""),
        ("<thinking effort=high>8</thinking> 3", "3"),
        ("<seed:think>8</seed:think>3", "3"),
        ("<|START_THINKING|>8<|END_THINKING|>3", "3"),
        ("[THINK]8[/THINK]3", "3"),
        ("<|channel|>analysis<|message|>It is 8?<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>", "3"),
        ("<|channel|>analysis<|message|>It is 8", ""),
        ("analysisThe user wants 8?assistantfinal3", "3"),
        ("It is <|begin_of_box|>3<|end_of_box|>", "3"),
        ("<think>8</think><answer>3</answer>", "3"),
        ("\\boxed{3}", "3"),
        ("a thinking man in a red house", "a thinking man in a red house"),
    ],
)
def test_thinking_is_taken_out_wherever_it_was_put(text: str, left: str) -> None:
    assert replies.without_thinking(text).strip() == left
    assert readings.parse_score(text) == (3 if left == "3" else None)


def test_an_answer_in_the_field_of_thinking_counts_only_where_thinking_is_off() -> None:
    body = said(None, reasoning_content="7")
    assert readings.typed(read(body), "judge").status != "valid"
    off = readings.typed(read(body, thinking_off=True), "judge")
    assert (off.status, off.text) == ("valid", "7")


def test_probabilities_are_read_where_the_answer_stands() -> None:
    def token(text: str, **alternatives: float) -> dict:
        options = alternatives or {text: 0.9, "x": 0.1}
        top = [{"token": name, "logprob": math.log(share)} for name, share in options.items()]
        return {"token": text, "logprob": math.log(options[text]), "top_logprobs": top}

    written = [token("<think>"), token("8"), token("</think>"), token("\n"), token("Yes", Yes=0.75, No=0.25)]
    body = said("<think>8</think>\nYes")
    body["choices"][0]["logprobs"] = {"content": written}
    reply = read(body, YES_NO)
    assert reply.probabilities == pytest.approx({"yes": 0.75, "no": 0.25})
    apart = said("Yes", reasoning_content="8")
    apart["choices"][0]["logprobs"] = {"content": written}
    assert read(apart, YES_NO).probabilities == pytest.approx({"yes": 0.75, "no": 0.25})


@pytest.mark.parametrize("others", [[], [("No", -9999.0)], [("No", float("-inf"))], [("No", -100.0)]])
def test_a_written_token_with_all_the_probability_is_degenerate(others: list[tuple[str, float]]) -> None:
    body = said("Yes")
    top = [{"token": name, "logprob": value} for name, value in [("Yes", 0.0), *others]]
    body["choices"][0]["logprobs"] = {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": top}]}
    assert completion.degenerate(body)
    if not others:
        assert read(body, YES_NO).probabilities is None
