"""report: everything measured on one page, numbers for `dvc metrics diff`, series for `dvc plots`; then MLflow."""

import sys

from t2i_feedback import arms
from t2i_feedback.foundation import paths, pipeline, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import CalibrationRow, CaptionRow, EpochRow, read_rows
from t2i_feedback.reporting import alarm, calibration, comparisons, gathering, numbers, page, protocols, series
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.preferred import Preferred, Tally, drawn_with, tally
from t2i_feedback.reporting.section import Settings
from t2i_feedback.rewards import answers, human
from t2i_feedback.tracking import publish


def main() -> None:
    stage = pipeline.running("report")
    settings = load(Settings)
    evidence = gather(settings)
    print(f"report: {len(evidence.arms)} arms, {len(evidence.captions)} captions")
    alarms = alarm.alarms(evidence.history, settings.epochs)
    summary = comparisons.summary(evidence) | {"alarms": float(len(alarms))}
    workspace.check_unedited(stage, settings)
    series.write(evidence, paths.PLOTS)
    write_json(paths.NUMBERS, numbers.every(evidence, gathering.numbers(paths.FINETUNE_NUMBERS), summary))
    write_json(paths.HEADLINE, numbers.headline(evidence, summary))
    write_text(paths.REPORT, page.render(evidence))
    for sign in alarms:
        print(f"report: alarm: {sign}")
    print(f"report: {paths.REPORT}, {paths.REPORT.stat().st_size / 2**20:.1f} MiB")
    try:
        publish.publish(fresh=[paths.NUMBERS])
    except UserError as error:  # the page is right all the same
        print(f"warning: {error}", file=sys.stderr)


def gather(settings: Settings) -> Evidence:
    """What the other stages left. Only the captions must be there; whatever else is missing, the page says so."""
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    run = {
        arm.name: gathering.measured_arm(arm, paths.arm(arm.name), paths.evaluation(arm.name))
        for arm in arms.ARMS
        if paths.arm_numbers(arm.name).exists()
    }
    alike, apart = protocols.split(run)
    return Evidence(
        settings=settings,
        dataset=paths.DATASET,
        captions={row.caption_id: row for row in captions},
        arms=alike,
        apart=apart,
        calibration=gathering.rows(paths.CALIBRATION / "sweeps.jsonl", CalibrationRow),
        calibration_metrics=gathering.numbers(paths.CALIBRATION_NUMBERS),
        validator_metrics=gathering.numbers(paths.VALIDATOR_NUMBERS),
        judge_plots=gathering.images(paths.JUDGE_PLOTS, calibration.JUDGES),
        validator_plots=gathering.images(paths.VALIDATOR_PLOTS, calibration.VALIDATORS),
        left_out=gathering.numbers(paths.LEFT_OUT).get("left_out", 0),
        history=gathering.rows(paths.ADAPTER / "history.jsonl", EpochRow),
        preferred=preferred_by_a_person(settings.preference, run.get(arms.finetuned().name)),
    )


def preferred_by_a_person(preference: str, finetuned: MeasuredArm | None) -> Tally | None:
    """What was answered on the page of `make feedback` about the adapter that drew the arm; None if nothing was.

    DVC does not know of the file. What is wrong with it is a warning, and the report says nothing of it then.
    """
    file = human.sheet_of(preference, paths.feedback()).comparisons
    if finetuned is None or not finetuned.images or not file.exists():
        return None
    adapter = drawn_with(finetuned.folder / next(iter(finetuned.images.values())).image)
    try:
        found = [one for one in answers.read(file, Preferred) if one.adapter == adapter]
    except UserError as error:
        print(f"warning: {error}; the report leaves out what a person preferred", file=sys.stderr)
        return None
    return tally(found, adapter) if found and adapter else None


if __name__ == "__main__":
    running.run(main)
