"""calibrate: do the judges rank what they judge? Fine-tuning reads the result (calibration/sweeps.py says how)."""

from t2i_feedback import params
from t2i_feedback.calibration.images import calibration_rows
from t2i_feedback.foundation import paths, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import write_rows
from t2i_feedback.foundation.traits import TRAITS


def main() -> None:
    p = params.load()
    judges = sorted({p.finetune.judge, p.evaluate.judge})
    pools = (paths.REFERENCE_CAPTIONS, paths.FINETUNE_CAPTIONS)
    rows = calibration_rows(paths.EVALUATION_CAPTIONS, pools, p.calibrate.images, p.seed)
    print(
        f"calibrate: {', '.join(judges)} on {len(rows)} images x {len(TRAITS)} traits x {p.calibrate.levels} levels "
        f"for “{p.finetune.preference}”"
    )
    from t2i_feedback import mllm
    from t2i_feedback.calibration import sweeps
    from t2i_feedback.reporting import calibration

    images = [open_rgb(paths.DATASET / row.image) for row in rows]
    entries = [str(decisive(p.mllms[name])) for name in judges]
    dataset = [paths.REFERENCE_CAPTIONS, paths.EVALUATION_CAPTIONS, paths.FINETUNE_CAPTIONS]
    asked: list[workspace.Setting] = [p.seed, p.calibrate.images, p.calibrate.levels, p.finetune.preference]
    digest = workspace.digest([*asked, *entries], dataset)
    found: dict[str, sweeps.CalibratedJudge] = {}
    with workspace.partial("calibrate", digest) as work:
        for name in judges:
            with mllm.open(name, p.mllms[name], paths.ledger()) as judge:
                found[name] = sweeps.calibrate_judge(
                    name,
                    judge,
                    images,
                    rows,
                    preference=p.finetune.preference,
                    level_count=p.calibrate.levels,
                    max_invalid_fraction=p.finetune.max_invalid_fraction,
                    seed=p.seed,
                )
        write_rows(work / "sweeps" / "sweeps.jsonl", [row for one in found.values() for row in one.sweeps])
        workspace.publish(work / "sweeps", paths.CALIBRATION)
    calibration.draw_judges(found, p.finetune.preference, paths.JUDGE_PICTURES)
    write_json(paths.CALIBRATION_METRICS, {name: one.numbers for name, one in found.items()})
    ranks = ", ".join(f"{name} {_figure(one.numbers['rank_correlation'])}" for name, one in found.items())
    print(f"calibrate: rank correlation with the preferred direction: {ranks}; pictures in {paths.JUDGE_PICTURES}")


def _figure(value: float | None) -> str:
    return "not to be had" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    running.run(main)
