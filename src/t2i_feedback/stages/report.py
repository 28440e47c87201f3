"""report: everything measured on one page, flat numbers for `dvc metrics diff`, series for `dvc plots`; then MLflow."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.foundation.rows import (
    CalibrationRow,
    CaptionRow,
    EpochRow,
    EvaluationRow,
    FidRow,
    PictureRow,
    RoundRow,
    RowType,
    read_rows,
)
from t2i_feedback.reporting import alarm, calibration, comparisons, grids, page, protocols
from t2i_feedback.reporting.evidence import LOOPS, Arm, Evidence
from t2i_feedback.tracking import publish


def main() -> None:
    p = params.load()
    evidence = gather(p)
    print(f"report: {len(evidence.arms)} arms, {len(evidence.captions)} captions")
    alarms = alarm.alarms(evidence.history, p.finetune.epochs)
    summary = comparisons.summary(evidence) | {"alarms": float(len(alarms))}
    write_plots(evidence)
    write_json(paths.SUMMARY, summary)
    write_text(paths.REPORT, page.render(evidence))
    print(f"report: {paths.REPORT}, {paths.REPORT.stat().st_size / 2**20:.1f} MiB")
    publish.publish(p)


# ------------------------------------------------------------------------------------------------ reading


def gather(p: params.Params) -> Evidence:
    """What the other stages left. Only the captions must be there; whatever else is missing, the page says so."""
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    alike, apart = protocols.split({name: read_arm(name) for name in paths.ARMS if paths.arm_metrics(name).exists()})
    return Evidence(
        params=p,
        dataset=paths.DATASET,
        captions={row.caption_id: row for row in captions},
        arms=alike,
        apart=apart,
        calibration=_rows(paths.CALIBRATION / "sweeps.jsonl", CalibrationRow),
        calibration_metrics=_json(paths.CALIBRATION_METRICS),
        validator_metrics=_json(paths.VALIDATOR_METRICS),
        judge_pictures=_pictures(paths.JUDGE_PICTURES, calibration.JUDGES),
        validator_pictures=_pictures(paths.VALIDATOR_PICTURES, calibration.VALIDATORS),
        history=_rows(paths.ADAPTER / "history.jsonl", EpochRow),
    )


def read_arm(name: str) -> Arm:
    folder, measured = paths.arm(name), paths.evaluation(name)
    return Arm(
        name=name,
        folder=folder,
        metrics=_json(paths.arm_metrics(name)),
        card=_json(measured / "card.json"),
        measured={row.caption_id: row for row in read_rows(measured / "per_image.jsonl", EvaluationRow)},
        pictures={row.caption_id: row for row in read_rows(folder / "pictures.jsonl", PictureRow)},
        rounds=_rows(folder / "rounds.jsonl", PictureRow),
        measured_rounds=_rows(measured / "rounds.jsonl", RoundRow),
        fid_by_n=_rows(measured / "fid_by_n.jsonl", FidRow),
    )


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _pictures(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    files = {name: folder / f"{name}.png" for name in names}
    return {name: file for name, file in files.items() if file.exists()}


def _rows(path: Path, row_type: type[RowType]) -> list[RowType]:
    return read_rows(path, row_type) if path.exists() else []


# ------------------------------------------------------------------------------------------------ plots for dvc


def write_plots(evidence: Evidence) -> None:
    """CSV series and the picture grid. Each is written even when empty: DVC wants the same files of every run."""
    arms = evidence.arms.values()
    epochs: list[dict[str, object]] = [{"epoch": row.epoch, **row.numbers()} for row in evidence.history]
    known = [name for name in EpochRow.model_fields if name != "parts"]
    _csv("reward", known + sorted({name for row in epochs for name in row} - set(known)), epochs)
    keys = sorted({key for arm in arms for key in arm.metrics})
    _csv("arms", ["arm", *keys], [{"arm": arm.name, **arm.metrics} for arm in arms])
    curves = [{"arm": arm.name, **row.model_dump()} for arm in arms for row in arm.fid_by_n]
    _csv("fid_by_n", ["arm", *FidRow.model_fields], curves)
    sweeps = [
        {"judge": judge, "trait": trait, "level": level, "score": score, "standard_error": error}
        for (judge, trait), points in comparisons.sweep_means(evidence).items()
        for level, score, error in points
    ]
    _csv("calibration", ["judge", "trait", "level", "score", "standard_error"], sweeps)
    rounds = [vars(row) for arm in arms if arm.name in LOOPS for row in comparisons.rounds(arm)]
    _csv("rounds", ["arm", "round", "drawn", "judged", "accepted", "alignment"], rounds)
    shown = grids.spread_out(grids.shared_captions(evidence), evidence.params.report.grid)
    texts = {caption_id: evidence.captions[caption_id].caption for caption_id in shown}
    grids.sheet(texts, list(arms)).save(paths.PLOTS / "pictures.png", optimize=True)


def _csv(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(paths.PLOTS / f"{name}.csv", buffer.getvalue())


if __name__ == "__main__":
    running.run(main)
