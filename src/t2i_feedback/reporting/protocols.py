"""Which numbers may stand side by side. A card says what numbers were made by; a number's own card is a part of it."""

from collections.abc import Mapping

from t2i_feedback.reporting.evidence import MeasuredArm

Card = Mapping[str, object]

_DRAWN = ("n", "model", "steps", "guidance", "sampler", "drawn_at", "image_format", "seed")
_FEATURES = (*_DRAWN, "resolution", "resizer", "extractor", "weights", "feature_dimensions")
_REFERENCE = ("reference_set", "reference_n", "reference_format")
_VALIDATED = (*_DRAWN, "validator", "validator_reading", "validator_asked", "templates")
DECIDES: Mapping[str, tuple[str, ...]] = {  # a number -> the keys of the card that decide it
    "fid": (*_FEATURES, *_REFERENCE, "fid_std"),
    "is": (*_FEATURES, "classes", "is_std"),
    "kid": (*_FEATURES, *_REFERENCE, "kid_std"),
    "precision": (*_FEATURES, *_REFERENCE, "neighbourhood"),
    "recall": (*_FEATURES, *_REFERENCE, "neighbourhood"),
    "diversity": (*_FEATURES, "diversity"),
    "alignment": _DRAWN,
    "whole": _DRAWN,
    "clip_score": (*_DRAWN, "clip_score"),
    "vqa_score": (*_DRAWN, "vqa_score", "vqa_reading", "vqa_asked"),
    "question_alignment": (*_DRAWN, "question_alignment", "questions_reading", "questions_asked", "templates"),
    "brightness": (*_DRAWN, "brightness"),
    "contrast": (*_DRAWN, "contrast"),
    "sharpness": (*_DRAWN, "sharpness"),
    "judge_score": (*_DRAWN, "preference", "judge", "judge_reading", "judge_asked", "templates"),
    "held_out_score": (*_DRAWN, "preference", "held_out_judge", "held_out_reading", "held_out_asked", "templates"),
    "p_yes": _VALIDATED,
    "acceptance_rate": _VALIDATED,
    "rounds_mean": (*_VALIDATED, "rounds_std"),
    "tokens_lost": _DRAWN,
}


def card_of(number: str, card: Card) -> dict[str, object]:
    """The part of an arm's card that decides one number."""
    return {key: card[key] for key in DECIDES[number] if key in card}


def differences(card: Card, other: Card) -> dict[str, tuple[object, object]]:
    """Key -> both values, where two cards differ; None where one lacks the key.

    How answers were read is left out: it may count single answers, and the shares of invalid ones stand in the tables.
    """
    keys = [key for key in dict.fromkeys([*card, *other]) if not key.endswith("_reading")]
    return {key: (card.get(key), other.get(key)) for key in keys if card.get(key) != other.get(key)}


def split(arms: Mapping[str, MeasuredArm]) -> tuple[dict[str, MeasuredArm], dict[str, MeasuredArm]]:
    """Arms of the first one's protocol, and those that must not stand beside them."""
    first: Card = next((arm.card for arm in arms.values()), {})
    alike = {name: arm for name, arm in arms.items() if not differences(first, arm.card)}
    return alike, {name: arm for name, arm in arms.items() if name not in alike}
