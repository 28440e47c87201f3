"""Before or after fine-tuning: which image of a held-out caption does the person prefer? Asked blind.

Order and sides follow from the adapter and the caption, so that a page that is opened again goes on with the same
pairs, and tell nothing of which is which. The answers are lines of comparisons.jsonl beside the score sheet.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t2i_feedback import arms
from t2i_feedback.foundation import files, paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, read_rows
from t2i_feedback.reporting.preferred import drawn_with

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Pair:
    """Two images of one caption."""

    caption_id: int
    caption: str
    left: Path
    right: Path
    after: Side  # where the image of the fine-tuned model is


def drawn_pairs() -> list[Pair]:
    """The pairs of the present adapter; none while its held-out images are not drawn."""
    weights = paths.ADAPTER / ADAPTER_WEIGHTS
    folders = [paths.arm(arm.name) for arm in (arms.base(), arms.finetuned())]
    if not weights.is_file() or not all((folder / "images.jsonl").is_file() for folder in folders):
        return []
    before, after = ({row.caption_id: row for row in read_rows(f / "images.jsonl", ImageRow)} for f in folders)
    adapter = adapter_digest()
    first = next(iter(after.values()), None)
    if first is None or drawn_with(folders[1] / first.image) != adapter:
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


def _dice(adapter: str, caption_id: int) -> str:
    return hashlib.sha256(f"{adapter} {caption_id}".encode()).hexdigest()
