"""The section `stage1` of params.yaml: enhance, generate, validate, round again until accepted."""

from typing import Annotated

from pydantic import Field

from t2i_feedback.foundation.params import FREE, Count, EntryName, Section, Share


class Stage1(Section):
    mllm: EntryName
    temperature: Annotated[float, Field(ge=0, le=2)]
    max_rounds: Count
    threshold: Share
    feedback: bool
    questions: bool
    max_invalid_fraction: Annotated[Share, FREE]


def validator_card(mllm: str, sees: bool, questions: bool, threshold: float) -> dict[str, object]:
    """The validator's line of the protocol card. A model that does not see images validates none."""
    accepts = f"accepts from {'a share of items' if questions else 'P(yes)'} {threshold:g}"
    return {"validator": f"{mllm}, {accepts}" if sees else f"none: {mllm} reads text alone"}
