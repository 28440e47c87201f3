"""calibrate: do the judges rank what they judge? Fine-tuning reads the result (calibration/sweeps.py says how)."""

from typing import Annotated

from t2i_feedback.calibration.images import calibration_rows
from t2i_feedback.foundation import paths, pipeline, running, workspace
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.params import FREE, EntryName, Keys, Seed, Share, key, load
from t2i_feedback.foundation.rows import write_rows
from t2i_feedback.foundation.traits import TRAITS
from t2i_feedback.mllm.section import Catalogue


class Settings(Keys):
    seed: Seed
    mllms: Catalogue
    images: int = key("calibrate.images")
    levels: int = key("calibrate.levels")
    image_side: int = key("calibrate.image_side")
    judge: EntryName = key("finetune.judge")
    held_out: EntryName = key("evaluate.judge")
    preference: str = key("finetune.preference")
    max_invalid_fraction: Annotated[Share, FREE] = key("finetune.max_invalid_fraction")


def main() -> None:
    stage = pipeline.running("calibrate")
    p = load(Settings)
    judges = sorted({p.judge, p.held_out})
    pools = (paths.REFERENCE_CAPTIONS, paths.FINETUNE_CAPTIONS)
    rows = calibration_rows(paths.EVALUATION_CAPTIONS, pools, p.images, p.seed)
    print(
        f"calibrate: {', '.join(judges)} on {len(rows)} images x {len(TRAITS)} traits x {p.levels} levels "
        f"for “{p.preference}”"
    )
    from t2i_feedback import mllm
    from t2i_feedback.calibration import sweeps
    from t2i_feedback.reporting import calibration

    images = [open_rgb(paths.DATASET / row.image, p.image_side) for row in rows]
    limit = ("finetune.max_invalid_fraction", p.max_invalid_fraction)
    found: dict[str, sweeps.CalibratedJudge] = {}
    with workspace.unfinished(stage, p) as work:
        for name in judges:
            with mllm.connect(name, p.mllms[name], paths.ledger(), max_invalid=limit) as judge:
                found[name] = sweeps.calibrate_judge(
                    name,
                    judge,
                    images,
                    rows,
                    preference=p.preference,
                    level_count=p.levels,
                    max_invalid_fraction=p.max_invalid_fraction,
                    seed=p.seed,
                )
        out = work / "calibration"
        write_rows(out / "sweeps.jsonl", [row for one in found.values() for row in one.sweeps])
        write_json(out / paths.CALIBRATION_NUMBERS.name, {name: one.numbers for name, one in found.items()})
        calibration.draw_judges(found, p.preference, out / paths.JUDGE_PLOTS.name)
        workspace.publish(stage, p, out, paths.CALIBRATION)
    ranks = ", ".join(f"{name} {_figure(one.numbers['rank_correlation'])}" for name, one in found.items())
    print(f"calibrate: rank correlation with the preferred direction: {ranks}; images in {paths.JUDGE_PLOTS}")


def _figure(value: float | None) -> str:
    return "not to be had" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    running.run(main)
