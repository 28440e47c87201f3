"""Which real images the models are calibrated on."""

import random
from collections.abc import Sequence
from pathlib import Path

from t2i_feedback.foundation.rows import CaptionRow, read_rows


def calibration_rows(evaluated: Path, pools: Sequence[Path], count: int, seed: int) -> list[CaptionRow]:
    """`count` images that are not evaluated on, or all there are. A pool is read when those before it hold too few."""
    never = {row.caption_id for row in read_rows(evaluated, CaptionRow)}
    found: list[CaptionRow] = []
    for pool in pools:
        if len(found) < count:
            found += [row for row in read_rows(pool, CaptionRow) if row.caption_id not in never]
    return random.Random(seed).sample(found, min(count, len(found)))
