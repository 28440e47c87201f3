"""What `dvc plots` shows: series as CSV files, and the arms' images of some captions side by side as one image."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from t2i_feedback.foundation.files import write_text
from t2i_feedback.foundation.rows import EpochRow, FidRow
from t2i_feedback.reporting import comparisons, grids
from t2i_feedback.reporting.evidence import Evidence


def write(evidence: Evidence, folder: Path) -> None:
    """Each is written even when empty: DVC wants the same files of every run."""
    arms = list(evidence.arms.values())
    epochs: list[dict[str, object]] = [{"epoch": row.epoch, **row.numbers()} for row in evidence.history]
    known = [name for name in EpochRow.model_fields if name != "parts"]
    _csv(folder / "reward.csv", known + sorted({name for row in epochs for name in row} - set(known)), epochs)
    keys = sorted({key for arm in arms for key in arm.metrics})
    _csv(folder / "arms.csv", ["arm", *keys], [{"arm": arm.name, **arm.metrics} for arm in arms])
    curves = [{"arm": arm.name, **row.model_dump()} for arm in arms for row in arm.fid_by_n]
    _csv(folder / "fid_by_n.csv", ["arm", *FidRow.model_fields], curves)
    sweeps = [
        {"judge": judge, "trait": trait, "level": level, "score": score, "standard_error": error}
        for (judge, trait), points in comparisons.sweep_means(evidence).items()
        for level, score, error in points
    ]
    _csv(folder / "calibration.csv", ["judge", "trait", "level", "score", "standard_error"], sweeps)
    rounds = [vars(row) for arm in arms if arm.arm.draws_several for row in comparisons.rounds(arm)]
    _csv(folder / "rounds.csv", ["arm", "round", "drawn", "judged", "accepted", "alignment"], rounds)
    shown = grids.spread_out(grids.shared_captions(evidence), evidence.settings.report.grid)
    texts = {caption_id: evidence.captions[caption_id].caption for caption_id in shown}
    grids.sheet(texts, arms).save(folder / "images.png", optimize=True)


def _csv(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, buffer.getvalue())
