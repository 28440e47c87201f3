"""Rewards that the judge's model gives: a score for the preference, or whether an image shows its caption."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.traits import TRAITS
from t2i_feedback.rewards.base import Reward, RewardKind

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i_feedback.mllm.base import Mllm
    from t2i_feedback.mllm.roles import Typed


def preference(judge: "Mllm", text: str, invalid: "list[Typed] | None" = None) -> Reward:
    """The judge's expected score, 1 to 10, of how well an image fits the preference; the prompt plays no part.

    Answers that are not valid are added to `invalid`.
    """

    def reward(images: "list[Image]", prompts: list[str]) -> list[float | None]:
        from t2i_feedback.mllm import roles

        outcomes = roles.score_preference(judge, images, text)
        if invalid is not None:
            invalid.extend(outcome for outcome in outcomes if outcome.status != "valid")
        return [outcome.value for outcome in outcomes]

    return reward


def shows_caption(judge: "Mllm", captions: Mapping[str, str], invalid: "list[Typed] | None" = None) -> Reward:
    """P(yes) that an image shows the caption behind its prompt; `captions` maps prompt -> caption.

    Answers that are not valid are added to `invalid`.
    """

    def reward(images: "list[Image]", prompts: list[str]) -> list[float | None]:
        from t2i_feedback.mllm import roles

        verdicts = roles.validate(judge, images, [captions[prompt] for prompt in prompts])
        if invalid is not None:
            invalid.extend(verdict for verdict in verdicts if verdict.status != "valid")
        return [verdict.p_yes for verdict in verdicts]

    return reward


def require_calibrated(judge: str, least: float, calibration: Path, plot: Path) -> None:
    """Refuse a judge that cannot rank its own preference, or gave too few valid scores to tell.

    `calibration` holds the numbers of stage `calibrate`, `plot` shows them; `least` is the smallest rank correlation.
    """
    advice = f"see the plot {plot}. Choose another judge, or set finetune.require_calibrated to false"
    try:
        numbers = json.loads(calibration.read_text(encoding="utf-8"))[judge]
        found = numbers["rank_correlation"]
    except (FileNotFoundError, KeyError):
        raise UserError(f"{calibration} has no {judge}: run `dvc repro calibrate`") from None
    named = [trait for trait in TRAITS if trait in numbers]
    if found is None and named:
        raise UserError(
            f"finetune.judge {judge} gave too few valid scores to say whether it ranks {', '.join(named)}; {advice}"
        )
    if found is not None and found < least:  # None: the preference names no trait
        raise UserError(
            f"finetune.judge {judge} ranks its own preference with a correlation of {found:.2f}, below "
            f"calibrate.min_rank_correlation {least}; {advice}"
        )


REWARDS = (
    RewardKind(
        name="shows_caption",
        raw="P(yes) that the image shows its caption, 0..1",
        point=0.1,
        unit="of P(yes)",
        giver="judge",
        make=lambda context: shows_caption(context.present_judge, context.captions, context.invalid),
        asks="validator",
    ),
)
