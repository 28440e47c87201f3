"""What a validator passes on of images in a folder, and when a run stops."""

from pathlib import Path

import pytest
from PIL import Image
from test_roles import Prepared, p_yes

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, PromptRow
from t2i_feedback.loop.rounds import Roles, run_rounds
from t2i_feedback.mllm.base import Reply
from t2i_feedback.mllm.enhancing import Enhancer
from t2i_feedback.mllm.validating import Validator

CAPTIONS = [CaptionRow(caption_id=i, image_id=i, caption=f"a fish and {i} suns", image="a.png") for i in (1, 2)]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return ["1.png", "2.png"]


def validator(folder: Path, mllm: Prepared, questions: bool = False, limit: float = 0.1) -> Validator:
    return Validator(mllm, folder, questions=questions, max_invalid_fraction=limit)


def told(folder: Path, mllm: Prepared, questions: bool) -> list[str | None]:
    """What the enhancer of round 2 is told of the two images, both rejected."""
    passed_on: list[str | None] = []

    def enhance(captions, feedback, round):
        passed_on.extend(feedback)
        raise InterruptedError

    one = validator(folder, mllm, questions)
    first = [PromptRow(caption_id=row.caption_id, round=1, prompt=row.caption, status="valid") for row in CAPTIONS]
    roles = Roles(lambda prompts: ["1.png", "2.png"], one.validate, one.explain, enhance)
    with pytest.raises(InterruptedError):
        run_rounds(CAPTIONS, first, roles, max_rounds=2, threshold=0.6, feedback=True)
    return passed_on


def test_a_verdict_by_items_is_its_own_explanation(tmp_path: Path, images: list[str]) -> None:
    lists = Reply("valid", "a fish; a sun"), Reply("valid", "a fish; two suns")
    mllm = Prepared(*lists, p_yes(0.9), p_yes(0.1), p_yes(0.2), p_yes(0.3), templates="postcards")
    assert told(tmp_path, mllm, questions=True) == ["there is no sun", "there is no fish; two suns"]
    assert mllm.replies == []  # nobody was asked what is wrong


def test_a_verdict_that_says_no_more_than_no_is_asked_why(tmp_path: Path, images: list[str]) -> None:
    said = Reply("valid", "No, the fish is red."), Reply("valid", "no"), Reply("valid", "there is no sun")
    assert told(tmp_path, Prepared(*said, reading="text"), questions=False) == ["the fish is red", "there is no sun"]


def test_an_explanation_that_fails_is_none(tmp_path: Path, images: list[str]) -> None:
    mllm = Prepared(p_yes(0.1), p_yes(0.2), Reply("refusal", "no"), Reply("valid", "there is no sun"))
    assert told(tmp_path, mllm, questions=False) == [None, "there is no sun"]


def test_a_run_stops_when_too_many_verdicts_stay_invalid(tmp_path: Path, images: list[str]) -> None:
    one = validator(tmp_path, Prepared(p_yes(0.9), Reply("refusal", "no"), Reply("refusal", "no")))
    one.validate(CAPTIONS, images, 0)
    with pytest.raises(UserError, match="verdicts: 1 of 2 answers are not valid"):
        one.validate(CAPTIONS[1:], images[1:], 1)


def test_a_late_round_alone_does_not_stop_a_run_for_its_enhancer() -> None:
    first = [PromptRow(caption_id=i, round=1, prompt="x", status="valid") for i in range(20)]
    enhancer = Enhancer(Prepared(Reply("refusal", "no")), lambda texts: [len(text) for text in texts], 0.1, first)
    (row,) = enhancer.enhance(CAPTIONS[:1], ["no fish"], 2)
    assert (row.prompt, row.status, row.tokens_lost) == ("a fish and 1 suns", "refusal", 17)
    with pytest.raises(UserError, match="enhanced prompts: 1 of 1 answers are not valid"):
        Enhancer(Prepared(Reply("refusal", "no")), lambda texts: [0], 0.1).first_prompts(CAPTIONS[:1])


def test_prompts_are_drawn_by_seed_caption_and_round_and_the_likeliest_by_none() -> None:
    def seeds(temperature: float, seed: int, round: int) -> list[int]:
        asked = []

        class Noting(Prepared):
            def generate(self, requests, max_new_tokens=None, temperature=0.0):
                asked.extend((request.sample, temperature) for request in requests)
                return super().generate(requests, max_new_tokens, temperature)

        model = Noting(*[Reply("valid", "a fish") for _ in CAPTIONS])
        enhancer = Enhancer(model, lambda texts: [0] * len(texts), 0.1, temperature=temperature, seed=seed)
        enhancer.enhance(CAPTIONS, None, round)
        assert {given for _, given in asked} == {temperature}
        return [sample for sample, _ in asked]

    assert set(seeds(0.0, 1, 1)) == {0}
    found = [tuple(seeds(0.7, seed, round)) for seed in (1, 2) for round in (1, 2)]
    assert len({one for some in found for one in some}) == 4 * len(CAPTIONS)
    assert tuple(seeds(0.7, 1, 1)) == found[0]
