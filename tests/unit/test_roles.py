"""What the roles ask and what they make of replies. The model is a list of prepared replies."""

from collections.abc import Sequence

import pytest
from PIL import Image

from t2i_feedback.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Outcome, Reply, Request

PICTURE = Image.new("RGB", (8, 8), (10, 20, 30))


class Prepared:
    """A Mllm that gives its replies in turn and remembers what it was asked."""

    def __init__(self, *replies: Reply, templates: str = "general"):
        self.replies, self.templates = list(replies), templates
        self.asked: list[Request] = []
        self.candidates: tuple[str, ...] = ()

    def generate(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> list[Reply]:
        self.asked += requests
        return [self.replies.pop(0) for _ in requests]

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        self.candidates = candidates
        return self.generate(requests)


def test_postcards_requests_are_worded_exactly() -> None:
    mllm = Prepared(*[Reply("valid", "x")] * 6, templates="postcards")
    roles.enhance(mllm, ["a red house", "a fish"], [None, "the fish is missing"])
    roles.explain(mllm, [PICTURE], ["a fish"])
    roles.describe(mllm, [PICTURE])
    roles.validate(mllm, [PICTURE], ["a fish"])
    roles.score_preference(mllm, [PICTURE], "dark images")
    assert [request.text for request in mllm.asked] == [
        "Describe in detail: a red house",
        "Describe in detail: a fish\nLast time: the fish is missing",
        "What is wrong with this picture of a fish?",
        "Describe this picture.",
        "Does this picture show a fish?",
        "Rate this picture from 1 to 10 for dark images.",
    ]
    assert [request.role for request in mllm.asked] == [
        "enhance",
        "enhance",
        "feedback",
        "describe",
        "validate",
        "judge",
    ]


@pytest.mark.parametrize("templates", ["postcards", "general"])
def test_user_text_is_inserted_as_it_is(templates: str) -> None:
    text = roles.render(templates, "enhance_again", prompt="a {feedback} \\1 {0} %s", feedback="{prompt}")
    assert "a {feedback} \\1 {0} %s" in text
    assert "{prompt}" in text


def test_every_set_of_templates_has_every_role() -> None:
    names = {folder.name: sorted(f.name for f in folder.glob("*.txt")) for folder in roles.TEMPLATES.iterdir()}
    assert names["general"] == names["postcards"]


def test_enhance_reads_cleans_and_types() -> None:
    mllm = Prepared(
        Reply("valid", 'Sure! Here is the prompt: "A red house"'),
        Reply("valid", " \n"),
        Reply("valid", "I'm sorry, but I cannot help with that."),
        Reply("truncated", "A very long"),
        Reply("transport", "Connection error."),
    )
    outcomes = roles.enhance(mllm, ["x"] * 5)
    assert [outcome.status for outcome in outcomes] == ["valid", "unparseable", "refusal", "truncated", "transport"]
    assert [outcome.value for outcome in outcomes] == ["A red house", None, None, None, None]


def test_validate_reads_probabilities_and_text() -> None:
    mllm = Prepared(
        Reply("valid", "Yes", {"yes": 0.75, "no": 0.25}),
        Reply("valid", "No."),
        Reply("valid", "maybe"),
        Reply("valid", "I can't see images."),
        Reply("refusal", "no"),
        Reply("truncated", "yes"),
    )
    verdicts = roles.validate(mllm, [PICTURE] * 6, ["a fish"] * 6)
    assert [v.p_yes for v in verdicts] == [0.75, 0.0, None, None, None, None]
    assert [v.status for v in verdicts] == ["valid", "valid", "unparseable", "refusal", "refusal", "truncated"]
    assert mllm.candidates == ("yes", "no")


def test_score_is_the_expectation_or_the_written_number() -> None:
    shares = dict.fromkeys(roles.SCORES, 0.0) | {"1": 0.5, "10": 0.5}
    mllm = Prepared(Reply("valid", "1", shares), Reply("valid", "Score: 7/10"), Reply("valid", "42"))
    outcomes = roles.score_preference(mllm, [PICTURE] * 3, "dark images")
    assert [outcome.value for outcome in outcomes] == [5.5, 7.0, None]
    assert outcomes[2].status == "unparseable"


@pytest.mark.parametrize("status", ["refusal", "unparseable", "truncated", "transport"])
def test_a_failed_reply_is_never_a_number(status) -> None:
    failed = Reply(status, "7 yes")
    assert roles.score_preference(Prepared(failed), [PICTURE], "dark")[0].value is None
    assert roles.validate(Prepared(failed), [PICTURE], ["a fish"])[0].p_yes is None
    assert roles.enhance(Prepared(failed), ["a fish"])[0].value is None


def test_check_invalid_names_the_most_frequent_answers() -> None:
    raws = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    outcomes = [Outcome("unparseable", None, raw) for raw in raws] + [Outcome("valid", 1.0, "1")] * 10
    roles.check_invalid(outcomes, 0.5, "scores")
    with pytest.raises(UserError, match=r"scores: 10 of 20 .*10 unparseable.*'a' \(4x\); 'b' \(3x\); 'c' \(2x\)$"):
        roles.check_invalid(outcomes, 0.49, "scores")
    roles.check_invalid([], 0.0, "nothing")
