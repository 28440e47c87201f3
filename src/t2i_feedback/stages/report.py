"""report: everything measured on one page, flat numbers for `dvc metrics diff`, series for `dvc plots`; then MLflow."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from t2i_feedback import arms
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import (
    CalibrationRow,
    CaptionRow,
    EpochRow,
    EvaluationRow,
    FidRow,
    ImageRow,
    RoundRow,
    RowType,
    read_rows,
)
from t2i_feedback.reporting import alarm, calibration, comparisons, page, protocols, series
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.section import Settings
from t2i_feedback.tracking import publish


def main() -> None:
    settings = load(Settings)
    evidence = gather(settings)
    print(f"report: {len(evidence.arms)} arms, {len(evidence.captions)} captions")
    alarms = alarm.alarms(evidence.history, settings.epochs)
    summary = comparisons.summary(evidence) | {"alarms": float(len(alarms))}
    series.write(evidence, paths.PLOTS)
    write_json(paths.SUMMARY, summary)
    write_text(paths.REPORT, page.render(evidence))
    print(f"report: {paths.REPORT}, {paths.REPORT.stat().st_size / 2**20:.1f} MiB")
    try:
        publish.publish(fresh=[paths.SUMMARY])
    except UserError as error:  # the page is right all the same
        print(f"warning: {error}", file=sys.stderr)


def gather(settings: Settings) -> Evidence:
    """What the other stages left. Only the captions must be there; whatever else is missing, the page says so."""
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    run = {arm.name: read_arm(arm) for arm in arms.ARMS if paths.arm_metrics(arm.name).exists()}
    alike, apart = protocols.split(run)
    return Evidence(
        settings=settings,
        dataset=paths.DATASET,
        captions={row.caption_id: row for row in captions},
        arms=alike,
        apart=apart,
        calibration=_rows(paths.CALIBRATION / "sweeps.jsonl", CalibrationRow),
        calibration_metrics=_json(paths.CALIBRATION_METRICS),
        validator_metrics=_json(paths.VALIDATOR_METRICS),
        judge_plots=_images(paths.JUDGE_PLOTS, calibration.JUDGES),
        validator_plots=_images(paths.VALIDATOR_PLOTS, calibration.VALIDATORS),
        history=_rows(paths.ADAPTER / "history.jsonl", EpochRow),
    )


def read_arm(arm: arms.Arm) -> MeasuredArm:
    folder, measured = paths.arm(arm.name), paths.evaluation(arm.name)
    return MeasuredArm(
        arm=arm,
        folder=folder,
        metrics=_json(paths.arm_metrics(arm.name)),
        card=_json(measured / "card.json"),
        measured={row.caption_id: row for row in read_rows(measured / "per_image.jsonl", EvaluationRow)},
        images={row.caption_id: row for row in read_rows(folder / "images.jsonl", ImageRow)},
        rounds=_rows(folder / "rounds.jsonl", ImageRow),
        measured_rounds=_rows(measured / "rounds.jsonl", RoundRow),
        fid_by_n=_rows(measured / "fid_by_n.jsonl", FidRow),
    )


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _images(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    files = {name: folder / f"{name}.png" for name in names}
    return {name: file for name, file in files.items() if file.exists()}


def _rows(path: Path, row_type: type[RowType]) -> list[RowType]:
    return read_rows(path, row_type) if path.exists() else []


if __name__ == "__main__":
    running.run(main)
