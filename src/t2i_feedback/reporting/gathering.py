"""Reading what other stages left, as far as it is there: what nobody made is empty, and the page says so."""

import json
from collections.abc import Sequence
from pathlib import Path

from t2i_feedback.arms import Arm
from t2i_feedback.foundation.rows import EvaluationRow, FidRow, ImageRow, RoundRow, RowType, read_rows
from t2i_feedback.reporting.evidence import MeasuredArm


def measured_arm(arm: Arm, folder: Path, measured: Path) -> MeasuredArm:
    """`folder` has the arm's images and rows, `measured` what `evaluate` found of them."""
    return MeasuredArm(
        arm=arm,
        folder=folder,
        metrics=numbers(measured / "numbers.json"),
        card=numbers(measured / "card.json"),
        measured={row.caption_id: row for row in read_rows(measured / "per_image.jsonl", EvaluationRow)},
        images={row.caption_id: row for row in read_rows(folder / "images.jsonl", ImageRow)},
        rounds=rows(folder / "rounds.jsonl", ImageRow),
        measured_rounds=rows(measured / "rounds.jsonl", RoundRow),
        fid_by_n=rows(measured / "fid_by_n.jsonl", FidRow),
    )


def numbers(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def images(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Name -> its PNG file."""
    files = {name: folder / f"{name}.png" for name in names}
    return {name: file for name, file in files.items() if file.exists()}


def rows(path: Path, row_type: type[RowType]) -> list[RowType]:
    return read_rows(path, row_type) if path.exists() else []
