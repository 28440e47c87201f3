"""What the roles ask and what they make of replies. The model is a list of prepared replies."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import Reading
from t2i_feedback.mllm import roles, wording
from t2i_feedback.mllm.base import Outcome, Reply, Request

IMAGE = Image.new("RGB", (8, 8), (10, 20, 30))


class Prepared:
    """A Mllm that gives its replies in turn and remembers what it was asked."""

    def __init__(self, *replies: Reply, templates: str = "general", reading: Reading = "probability"):
        self.replies, self.templates, self.reading = list(replies), templates, reading
        self.asked: list[Request] = []
        self.candidates: tuple[str, ...] = ()

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        self.asked += requests
        return [self.replies.pop(0) for _ in requests]

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        self.candidates = candidates
        return self.generate(requests)


def test_postcards_requests_are_worded_exactly() -> None:
    mllm = Prepared(*[Reply("valid", "x")] * 5, templates="postcards")
    roles.enhance(mllm, ["a red house", "a fish"], [None, "the fish is missing"])
    roles.explain(mllm, [IMAGE], ["a fish"])
    roles.validate(mllm, [IMAGE], ["a fish"])
    roles.score_preference(mllm, [IMAGE], "dark images")
    assert [request.text for request in mllm.asked] == [
        "Describe in detail: a red house",
        "Describe in detail: a fish\nLast time: the fish is missing",
        "What is wrong with this picture of a fish?",
        "Does this picture show a fish?",
        "Rate this picture from 1 to 10 for dark images.",
    ]
    assert [request.role for request in mllm.asked] == [
        "enhance",
        "enhance",
        "feedback",
        "validate",
        "judge",
    ]


@pytest.mark.parametrize("templates", ["postcards", "general"])
def test_vqa_score_asks_the_question_of_its_definition_whatever_the_templates(templates: str) -> None:
    mllm = Prepared(Reply("valid", "yes", {"yes": 0.75, "no": 0.25}, 0.8, reading="probability"), templates=templates)
    (outcome,) = roles.vqa_score(mllm, [IMAGE], ['a sign\nthat says "{no}"'])
    assert mllm.asked[0].text == 'Does this figure show "a sign that says "{no}""? Please answer yes or no.'
    assert (mllm.asked[0].role, mllm.candidates) == ("vqa", ("yes", "no"))
    assert outcome.value == pytest.approx(0.75 * 0.8)  # P(yes) among all answers, not among yes and no alone


def test_vqa_score_of_a_model_that_samples_or_writes_is_the_share_of_yes() -> None:
    mllm = Prepared(
        Reply("valid", "yes | no", {"yes": 0.75, "no": 0.25}, 0.8, reading="samples"),
        Reply("valid", "No, it does not."),
        Reply("valid", "Perhaps."),
        Reply("refusal", "I'm sorry"),
    )
    outcomes = roles.vqa_score(mllm, [IMAGE] * 4, ["a fish"] * 4)
    assert [outcome.value for outcome in outcomes] == [0.75, 0, None, None]
    assert [outcome.status for outcome in outcomes] == ["valid", "valid", "unparseable", "refusal"]


@pytest.mark.parametrize("templates", ["postcards", "general"])
def test_user_text_is_inserted_as_it_is(templates: str) -> None:
    text = wording.render(templates, "enhance_again", prompt="a {feedback} \\1 {0} %s", feedback="{prompt}")
    assert "a {feedback} \\1 {0} %s" in text
    assert "{prompt}" in text


def test_a_set_of_templates_has_the_known_ones_and_no_others() -> None:
    for folder in wording.TEMPLATES.iterdir():
        assert {file.stem for file in folder.glob("*.txt")} == wording.PLACEHOLDERS.keys()
        assert wording.version(folder.name).startswith(f"{folder.name} ")


@pytest.fixture
def own_templates(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the templates that a test may change."""
    folder = tmp_path / "templates"
    shutil.copytree(wording.TEMPLATES, folder)
    monkeypatch.setattr(wording, "TEMPLATES", folder)
    wording.template.cache_clear()
    yield folder / "general"
    wording.template.cache_clear()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("Is this right?", r"general/validate\.txt lacks its placeholder \{caption\}"),
        ("Is this {caption}, {who}?", r"has a placeholder \{who\} that nobody fills; known: \{caption\}"),
        (None, r"general/validate\.txt cannot be read"),
    ],
)
def test_a_template_that_cannot_work_is_one_line_with_its_file(
    own_templates, words: str | None, complaint: str
) -> None:
    if words is None:
        (own_templates / "validate.txt").unlink()
    else:
        (own_templates / "validate.txt").write_text(words)
    with pytest.raises(UserError, match=complaint):
        wording.version("general")
    with pytest.raises(UserError, match=complaint):
        roles.validate(Prepared(Reply("valid", "yes")), [IMAGE], ["a fish"])


def test_changed_words_are_another_version(own_templates) -> None:
    before, other = wording.version("general"), wording.digest("general", "judge")
    (own_templates / "validate.txt").write_text("Right? {caption}")
    wording.template.cache_clear()
    mllm = Prepared(Reply("valid", "yes"))
    roles.validate(mllm, [IMAGE], ["a fish"])
    assert wording.version("general") != before
    assert wording.digest("general", "judge") == other
    assert mllm.asked[0].template == wording.digest("general", "validate")


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
    verdicts = roles.validate(mllm, [IMAGE] * 6, ["a fish"] * 6)
    assert [v.p_yes for v in verdicts] == [0.75, 0.0, None, None, None, None]
    assert [v.status for v in verdicts] == ["valid", "valid", "unparseable", "refusal", "refusal", "truncated"]
    assert mllm.candidates == ("yes", "no")


def test_a_verdict_in_text_has_its_reason_and_is_asked_for_it() -> None:
    mllm = Prepared(Reply("valid", "No, the sky is green."), Reply("valid", "Yes."), reading="text")
    verdicts = roles.validate(mllm, [IMAGE] * 2, ["a fish"] * 2)
    assert [(v.p_yes, v.feedback, v.reading) for v in verdicts] == [(0, "the sky is green", "text"), (1, None, "text")]
    assert all("say in one short sentence" in request.text for request in mllm.asked)


# ------------------------------------------------------------------------------------------------ item by item


def p_yes(share: float) -> Reply:
    return Reply("valid", "yes", {"yes": share, "no": 1 - share}, reading="probability")


def test_each_item_of_a_caption_is_asked_about_and_what_is_missing_is_said() -> None:
    mllm = Prepared(
        Reply("valid", "a red house; a yellow sun on the left; a beach"),
        *(p_yes(share) for share in (0.9, 0.2, 0.1, 0.8, 0.7, 0.6)),
        templates="postcards",
    )
    caption = "a red house and a sun on a beach"
    first, second = roles.validate(mllm, [IMAGE] * 2, [caption] * 2, questions=True)
    assert [request.text for request in mllm.asked[:3]] == [
        "List what a picture of a red house and a sun on a beach must show.",
        "Is there a red house?",
        "Is there a yellow sun on the left?",
    ]
    assert [request.image for request in mllm.asked] == [None, *[IMAGE] * 6]  # one list for both images
    assert (first.status, first.p_yes) == ("valid", pytest.approx(1 / 3))
    assert first.feedback == "there is no yellow sun on the left; beach"
    assert (second.p_yes, second.feedback, second.reading) == (1.0, None, "probability")


def test_questions_in_general_words_are_the_models_own() -> None:
    mllm = Prepared(Reply("valid", "1. Is there a house?\n2. Is it red?"), p_yes(0.9), p_yes(0.3))
    (verdict,) = roles.validate(mllm, [IMAGE], ["a red house"], questions=True)
    assert [request.text for request in mllm.asked[1:]] == [
        "Is there a house? Answer only yes or no.",
        "Is it red? Answer only yes or no.",
    ]
    assert verdict.feedback == "the answer to these questions about the image is no: Is it red?"


def test_a_list_that_fails_masks_its_captions_and_no_others() -> None:
    mllm = Prepared(Reply("truncated", "a red"), Reply("valid", " ; "), Reply("valid", "a fish"), p_yes(0.9))
    verdicts = roles.validate(mllm, [IMAGE] * 3, ["a house", "a sun", "a fish"], questions=True)
    assert [(v.status, v.p_yes) for v in verdicts] == [("truncated", None), ("unparseable", None), ("valid", 1.0)]


def test_a_list_too_long_to_be_asked_whole_masks_its_caption() -> None:
    mllm = Prepared(Reply("valid", "; ".join(f"item {i}" for i in range(13))))
    (verdict,) = roles.validate(mllm, [IMAGE], ["a long caption"], questions=True)
    assert (verdict.status, verdict.p_yes) == ("unparseable", None)


def test_an_item_that_fails_masks_the_verdict() -> None:
    mllm = Prepared(Reply("valid", "a fish; a sun"), p_yes(0.1), Reply("transport", "lost"))
    (verdict,) = roles.validate(mllm, [IMAGE], ["a fish and a sun"], questions=True)
    assert (verdict.status, verdict.p_yes, verdict.feedback) == ("transport", None, None)


def test_nothing_is_asked_about_nothing() -> None:
    assert roles.validate(Prepared(), [], [], questions=True) == []


def test_score_is_the_expectation_or_the_written_number() -> None:
    shares = dict.fromkeys(roles.SCORES, 0.0) | {"1": 0.5, "10": 0.5}
    mllm = Prepared(Reply("valid", "1", shares), Reply("valid", "Score: 7/10"), Reply("valid", "42"))
    outcomes = roles.score_preference(mllm, [IMAGE] * 3, "dark images")
    assert [outcome.value for outcome in outcomes] == [5.5, 7.0, None]
    assert outcomes[2].status == "unparseable"


@pytest.mark.parametrize("status", ["refusal", "unparseable", "truncated", "transport"])
def test_a_failed_reply_is_never_a_number(status) -> None:
    failed = Reply(status, "7 yes", tokens_out=2)
    assert roles.score_preference(Prepared(failed), [IMAGE], "dark")[0].value is None
    assert roles.validate(Prepared(failed), [IMAGE], ["a fish"])[0].p_yes is None
    assert roles.enhance(Prepared(failed), ["a fish"])[0].value is None


def test_a_preference_beyond_the_context_is_named_by_its_key() -> None:
    too_long = Reply("truncated", "900 tokens and 1 new ones exceed the model's context of 256", tokens_in=900)
    with pytest.raises(UserError, match=r"finetune\.preference: 400 words .*context of 256"):
        roles.score_preference(Prepared(too_long, too_long), [IMAGE] * 2, "dark images " * 200)
    rambling = Reply("truncated", "I like it because", tokens_out=96)
    assert roles.score_preference(Prepared(rambling), [IMAGE], "dark")[0].status == "truncated"


def test_the_readings_that_were_used_are_told() -> None:
    sampled = [Outcome("valid", 1.0, "1", "samples")] * 3
    assert roles.readings_used(sampled) == "samples"
    assert roles.readings_used([*sampled, Outcome("valid", 1.0, "1", "text")]) == "samples 3, text 1"
    assert roles.readings_used([Outcome("refusal", None, "")]) == "none is valid"


def test_check_invalid_names_the_most_frequent_answers() -> None:
    raws = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    outcomes = [Outcome("unparseable", None, raw) for raw in raws] + [Outcome("valid", 1.0, "1")] * 10
    roles.check_invalid(outcomes, 0.5, "scores")
    with pytest.raises(UserError, match=r"scores: 10 of 20 .*10 unparseable.*'a' \(4x\); 'b' \(3x\); 'c' \(2x\)$"):
        roles.check_invalid(outcomes, 0.49, "scores")
    roles.check_invalid([], 0.0, "nothing")
