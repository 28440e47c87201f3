"""The validation loop: what happens to a caption, whatever the roles answer."""

from dataclasses import dataclass

import pytest

from t2i_feedback.foundation.rows import CaptionRow, ImageRow, PromptRow
from t2i_feedback.loop.rounds import Roles, best, by_caption, keep, run_rounds

CAPTIONS = [CaptionRow(caption_id=i, image_id=i, caption=f"caption {i}", image=f"{i}.png") for i in (1, 2, 3)]
FIRST = [PromptRow(caption_id=i, round=1, prompt=f"detailed {i}", status="valid") for i in (1, 2, 3)]


@dataclass(frozen=True)
class Said:
    status: str
    p_yes: float | None
    reading: str = "probability"
    feedback: str | None = None


class Script:
    """Roles that answer as told: `scores[(caption, round)]` is P(yes), or a status that is not valid.

    `remarks` are what verdicts say themselves: image -> feedback.
    """

    def __init__(self, scores, remarks=None):
        self.scores, self.remarks = scores, remarks or {}
        self.judged, self.drawn, self.told, self.explained = [], [], [], []

    def roles(self) -> Roles:
        return Roles(self.draw, self.validate, self.explain, self.enhance)

    def draw(self, prompts):
        self.drawn += [(row.caption_id, row.round, row.prompt) for row in prompts]
        return [f"{row.caption_id}-{row.round}" for row in prompts]

    def validate(self, captions, images, attempt):
        self.judged += [(row.caption, image, attempt) for row, image in zip(captions, images, strict=True)]
        answers = [self.scores[tuple(map(int, image.split("-")))] for image in images]
        answers = [answer[attempt] if isinstance(answer, tuple) else answer for answer in answers]
        return [
            Said("valid", a, feedback=self.remarks.get(image)) if isinstance(a, float) else Said(a, None)
            for image, a in zip(images, answers, strict=True)
        ]

    def explain(self, captions, images):
        self.explained += images
        return [f"wrong in {image}" for image in images]

    def enhance(self, captions, feedback, round):
        self.told += list(zip([row.caption_id for row in captions], feedback, strict=True))
        return [
            PromptRow(caption_id=row.caption_id, round=round, prompt=f"again {row.caption_id}", status="valid")
            for row in captions
        ]


def run(script, max_rounds=3, feedback=True):
    return run_rounds(CAPTIONS, FIRST, script.roles(), max_rounds=max_rounds, threshold=0.5, feedback=feedback)


ALL_GOOD = {(1, 1): 0.9, (2, 1): 0.8, (3, 1): 0.7}


def test_how_a_verdict_was_read_and_what_a_prompt_lost_stand_beside_it():
    first = [row.model_copy(update={"tokens_lost": 3}) for row in FIRST]
    images = run_rounds(CAPTIONS, first, Script(ALL_GOOD).roles(), max_rounds=1, threshold=0.5, feedback=True)
    assert {(p.reading, p.tokens_lost) for p in images} == {("probability", 3)}


def test_an_accepted_image_ends_its_caption():
    images = run(Script(ALL_GOOD))
    assert [(p.caption_id, p.round, p.accepted) for p in images] == [(1, 1, True), (2, 1, True), (3, 1, True)]


def test_a_image_at_the_threshold_is_accepted():
    assert run(Script(ALL_GOOD | {(3, 1): 0.5}))[-1].accepted is True


def test_a_rejected_prompt_goes_round_again_with_the_validators_feedback():
    script = Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.6})
    images = run(script)
    assert script.told == [(2, "wrong in 2-1")]
    assert script.drawn[-1] == (2, 2, "again 2")
    assert [(p.round, p.accepted, p.feedback) for p in by_caption(images)[2]] == [
        (1, False, "wrong in 2-1"),
        (2, True, None),
    ]


def test_a_verdict_that_says_what_is_missing_is_not_asked_to_explain_itself():
    script = Script({(i, r): 0.1 for i in (1, 2, 3) for r in (1, 2)}, {"1-1": "no sun", "3-1": "no fish"})
    images = run(script, max_rounds=2)
    assert script.explained == ["2-1"]
    assert script.told == [(1, "no sun"), (2, "wrong in 2-1"), (3, "no fish")]
    assert [p.feedback for p in images] == ["no sun", "wrong in 2-1", "no fish", None, None, None]


def test_what_the_verdict_on_an_accepted_image_missed_is_not_in_its_row():
    images = run(Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.6}, {"1-1": "no sun", "2-2": "no fish"}))
    assert [p.feedback for p in images] == [None, "wrong in 2-1", None, None]


def test_the_validator_always_judges_by_the_original_caption():
    script = Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.6})
    run(script)
    assert {caption for caption, image, _ in script.judged if image.startswith("2-")} == {"caption 2"}


def test_no_caption_is_dropped_and_rounds_are_capped():
    script = Script({(i, r): 0.1 for i in (1, 2, 3) for r in (1, 2, 3)})
    images = run(script)
    assert {caption: len(rows) for caption, rows in by_caption(images).items()} == {1: 3, 2: 3, 3: 3}


def test_at_the_cap_the_highest_p_yes_is_kept_and_marked_unaccepted():
    script = Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.4, (2, 3): 0.3})
    kept = keep(by_caption(run(script))[2])
    assert (kept.round, kept.accepted) == (2, False)


def test_nobody_explains_a_image_that_is_not_drawn_again():
    images = run(Script(ALL_GOOD | {(2, 1): 0.2}), max_rounds=1)
    assert by_caption(images)[2][0].feedback is None


def test_a_masked_verdict_is_asked_again():
    script = Script(ALL_GOOD | {(2, 1): ("refusal", 0.9)})
    images = run(script)
    assert ("caption 2", "2-1", 1) in script.judged
    assert by_caption(images)[2][0].accepted is True


@pytest.mark.parametrize("status", ["refusal", "unparseable", "truncated", "transport"])
def test_a_verdict_masked_twice_is_kept_as_unjudged_and_never_counts_as_a_rejection(status):
    images = by_caption(run(Script(ALL_GOOD | {(2, 1): status})))[2]
    assert [(p.round, p.status, p.p_yes, p.accepted) for p in images] == [(1, status, None, None)]
    assert keep(images).round == 1


def test_without_feedback_the_prompt_stays_and_only_the_noise_changes():
    script = Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.6})
    run(script, feedback=False)
    assert script.drawn[-1] == (2, 2, "detailed 2")
    assert script.told == []


def test_an_enhancer_is_told_of_missing_feedback_as_none():
    script = Script(ALL_GOOD | {(2, 1): 0.2, (2, 2): 0.6})
    script.explain = lambda captions, images: [None for _ in images]
    run(script)
    assert script.told == [(2, None)]


def test_keep_prefers_an_accepted_image():
    rows = [
        ImageRow(caption_id=1, round=r, prompt="", image="", status="valid", p_yes=p, accepted=p >= 0.5)
        for r, p in ((1, 0.4), (2, 0.6))
    ]
    assert keep(rows).round == 2


def test_best_of_n_prefers_a_clear_no_to_a_masked_verdict():
    masked = ImageRow(caption_id=1, round=1, prompt="", image="", status="refusal")
    refused = ImageRow(caption_id=1, round=2, prompt="", image="", status="valid", p_yes=0.0, accepted=False)
    assert best([masked, refused]).round == 2
