"""Before or after fine-tuning: which image of a held-out caption does the person prefer? Asked blind.

Order and sides follow from the adapter and the caption, so that a page that is opened again goes on with the same
pairs, and tell nothing of which is which. The answers are lines of comparisons.jsonl beside the score sheet.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from t2i_feedback import arms
from t2i_feedback.foundation import files, paths
from t2i_feedback.foundation.images import about_png
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, read_rows
from t2i_feedback.image_models.lora import ADAPTER_WEIGHTS

Side = Literal["left", "right"]


class Preferred(BaseModel):
    """One answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str  # digest of its weights
    caption_id: int
    preferred: Literal["before", "after", "neither"]


@dataclass(frozen=True)
class Pair:
    """Two images of one caption."""

    caption_id: int
    caption: str
    left: Path
    right: Path
    after: Side  # where the image of the fine-tuned model is


class Tally(BaseModel):
    """How often each was preferred, and the share of `after` among those that were, with its 95 % interval."""

    before: int
    after: int
    neither: int
    share: float | None  # None while nothing was preferred
    low: float | None
    high: float | None


def drawn_pairs() -> list[Pair]:
    """The pairs of the present adapter; none while its held-out images are not drawn."""
    weights = paths.ADAPTER / ADAPTER_WEIGHTS
    folders = [paths.arm(arm.name) for arm in (arms.base(), arms.finetuned())]
    if not weights.is_file() or not all((folder / "images.jsonl").is_file() for folder in folders):
        return []
    before, after = ({row.caption_id: row for row in read_rows(f / "images.jsonl", ImageRow)} for f in folders)
    adapter = adapter_digest()
    first = next(iter(after.values()), None)
    if first is None or _drawn_with(folders[1] / first.image) != adapter:
        return []
    captions = {row.caption_id: row.caption for row in read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)}
    pairs = []
    for caption_id in sorted(before.keys() & after.keys() & captions.keys(), key=lambda one: _dice(adapter, one)):
        both = folders[0] / before[caption_id].image, folders[1] / after[caption_id].image
        side: Side = "right" if _dice(adapter, caption_id)[-1] in "02468ace" else "left"
        left, right = both if side == "right" else both[::-1]
        pairs.append(Pair(caption_id, captions[caption_id], left, right, side))
    return pairs


def adapter_digest() -> str:
    """Names the adapter as its images do."""
    return files.digest(paths.ADAPTER / ADAPTER_WEIGHTS)[:16]


def tally(answers: Sequence[Preferred]) -> Tally:
    """Counts, and the interval of Wilson (1927) for a binomial share; ties are left out of it."""
    from scipy.stats import binomtest

    counts = {name: sum(one.preferred == name for one in answers) for name in ("before", "after", "neither")}
    decided = counts["before"] + counts["after"]
    if not decided:
        return Tally(**counts, share=None, low=None, high=None)
    interval = binomtest(counts["after"], decided).proportion_ci(method="wilson")
    return Tally(**counts, share=counts["after"] / decided, low=float(interval.low), high=float(interval.high))


def _drawn_with(image: Path) -> str | None:
    """The adapter that an image says it was drawn with."""
    return json.loads(about_png(image).get("parameters", "{}")).get("adapter")


def _dice(adapter: str, caption_id: int) -> str:
    return hashlib.sha256(f"{adapter} {caption_id}".encode()).hexdigest()
