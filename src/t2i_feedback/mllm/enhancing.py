"""What the stages that ask an enhancer share: captions in, PromptRows out. Not a stage itself."""

from collections.abc import Sequence

from t2i_feedback.foundation.rows import CaptionRow, PromptRow
from t2i_feedback.image_models.section import Model
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm, Outcome


def enhance(
    enhancer: Mllm,
    captions: Sequence[CaptionRow],
    feedback: list[str | None] | None,
    round: int,
    model: Model,
    max_invalid_fraction: float,
    earlier: Sequence[PromptRow] = (),
) -> list[PromptRow]:
    """One prompt per caption. Without a valid answer of the enhancer it is the caption itself, and the row says so.

    Raises UserError when too many answers are not valid, among these and the `earlier` ones of the same run: the few
    prompts of a late round do not stop it by themselves.
    """
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.stable_diffusion import load_tokenizer

    outcomes = roles.enhance(enhancer, [row.caption for row in captions], feedback)
    before = [Outcome(row.status, row.prompt, row.prompt) for row in earlier]
    roles.check_invalid([*before, *outcomes], max_invalid_fraction, "enhanced prompts")
    texts = [outcome.value or row.caption for outcome, row in zip(outcomes, captions, strict=True)]
    lost = tokens_lost(load_tokenizer(model), texts)
    return [
        PromptRow(caption_id=row.caption_id, round=round, prompt=text, status=outcome.status, tokens_lost=count)
        for row, text, outcome, count in zip(captions, texts, outcomes, lost, strict=True)
    ]


def first_prompts(
    enhancer: Mllm, captions: Sequence[CaptionRow], model: Model, max_invalid_fraction: float
) -> list[PromptRow]:
    return enhance(enhancer, captions, None, 1, model, max_invalid_fraction)
