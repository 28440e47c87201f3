"""What a person preferred, asked blind: images before fine-tuning or after it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from t2i_feedback.foundation.images import about_png


class Preferred(BaseModel):
    """One answer, a line of comparisons.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str  # digest of its weights
    caption_id: int
    preferred: Literal["before", "after", "neither"]


class Tally(BaseModel):
    """How often each was preferred, and the share of `after` among those that were, with its 95 % interval."""

    before: int
    after: int
    neither: int
    share: float | None  # None while nothing was preferred
    low: float | None
    high: float | None


def drawn_with(image: Path) -> str | None:
    """The adapter that an image says it was drawn with."""
    return json.loads(about_png(image).get("parameters", "{}")).get("adapter")


def tally(answers: Sequence[Preferred], adapter: str) -> Tally:
    """Of the answers about this adapter, the last for each caption. The interval is that of Wilson (1927) for a
    binomial share; ties are left out of it."""
    from scipy.stats import binomtest

    last = {one.caption_id: one.preferred for one in answers if one.adapter == adapter}
    counts = {name: list(last.values()).count(name) for name in ("before", "after", "neither")}
    decided = counts["before"] + counts["after"]
    if not decided:
        return Tally(**counts, share=None, low=None, high=None)
    interval = binomtest(counts["after"], decided).proportion_ci(method="wilson")
    return Tally(**counts, share=counts["after"] / decided, low=float(interval.low), high=float(interval.high))


def numbers(found: Tally | None) -> dict[str, float]:
    """The counts and, where something was preferred, the share of `after` with its interval; empty for None."""
    if found is None:
        return {}
    known = found.model_dump(exclude_none=True)
    ends = {"share": "after_share", "low": "after_share_low", "high": "after_share_high"}
    return {f"person_preferred_{ends.get(name, name)}": float(value) for name, value in known.items()}
