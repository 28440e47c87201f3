"""A small made-up pipeline run on disk, with known effects: every arm, two rounds, sweeps and a history."""

import atexit
import hashlib
import random
import shutil
import tempfile
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import NamedTuple

import numpy as np
import workplaces
from dvc.utils.serialize import dump_yaml, load_yaml
from safetensors.numpy import save_file

from t2i_feedback import arms
from t2i_feedback.arms import Arm
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import (
    CalibrationRow,
    CaptionRow,
    EpochRow,
    EvaluationRow,
    ImageRow,
    RoundRow,
    write_rows,
)
from t2i_feedback.reporting import calibration, numbers
from t2i_feedback.reporting.section import Settings
from t2i_feedback.stages import report

REPOSITORY = workplaces.REPOSITORY
GAINS = {"raw": 0.0, "enhanced": 0.1, "best_of_n": 0.12, "validated": 0.2, "finetuned": -0.02, "combined": 0.2}
SCORES = {"raw": 4.0, "finetuned": 6.5, "combined": 6.4}


class Stage(NamedTuple):
    """What dvc.lock says of one."""

    keys: tuple[str, ...]
    outs: tuple[Path, ...]
    deps: tuple[Path, ...] = ()


STAGES = {
    "data": Stage(("seed", "data"), (paths.DATASET,)),
    "calibrate": Stage(("seed", "calibrate.images"), (paths.CALIBRATION,), (paths.DATASET,)),
    "calibrate_validator": Stage(("seed", "stage1.threshold"), (paths.VALIDATOR,)),
    "finetune": Stage(("seed", "model", "finetune", "mllms.postcards"), (paths.ADAPTER,)),
    "validate@validated": Stage(("stage1",), (paths.arm("validated"),), (paths.EVALUATION_CAPTIONS,)),
    **{
        f"evaluate@{arm}": Stage(("seed", "model", "evaluate"), (paths.evaluation(arm),), (paths.arm(arm),))
        for arm in arms.NAMES
    },
    "report": Stage(
        ("seed", "report"),
        (paths.NUMBERS,),
        (paths.CALIBRATION, paths.VALIDATOR, paths.ARMS, Path("data/evaluation"), paths.FINETUNE_NUMBERS),
    ),
}


def write_run(root: Path, captions: int = 24, images_are_measured: bool = True) -> None:
    """Lay everything that the report reads out under `root`, which must be the current directory.

    A run that was laid out before is copied.
    """
    kind = (captions, images_are_measured, arms.NAMES)
    if kind not in _LAID_OUT:
        _lay_out(root, captions, images_are_measured)
        _LAID_OUT[kind] = Path(tempfile.mkdtemp(prefix="made-up-run-"))
        atexit.register(shutil.rmtree, _LAID_OUT[kind], ignore_errors=True)
        _copy(root, _LAID_OUT[kind])
    else:
        _copy(_LAID_OUT[kind], root)


_LAID_OUT: dict[tuple, Path] = {}


def _copy(there: Path, here: Path) -> None:
    for name in ("data", "metrics", "models/lora"):
        shutil.copytree(there / name, here / name, dirs_exist_ok=True)
    for name in (paths.PARAMS, paths.PIPELINE, paths.LOCK):
        shutil.copyfile(there / name, here / name)


def _lay_out(root: Path, captions: int, images_are_measured: bool) -> None:
    for file in (paths.PARAMS, paths.PIPELINE):
        shutil.copyfile(REPOSITORY / file, root / file)
    rng = random.Random(0)
    rows = _captions(captions, rng)
    for arm in arms.ARMS:
        _arm(arm, rows, rng, images_are_measured)
    _calibration(rng)
    _finetuning(rng)
    write_json(paths.NUMBERS, numbers.every(report.gather(load(Settings)), {"reward_mean_last": 6.5}, {"alarms": 0.0}))
    write_lock(STAGES)


def write_lock(stages: dict[str, Stage]) -> None:
    """dvc.lock as DVC writes it after these stages have run with the present params.yaml."""
    present = load_yaml(paths.PARAMS)

    def value(key: str) -> object:
        return reduce(getitem, key.split("."), present)

    def file(path: Path) -> dict[str, str]:
        md5 = hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else "0123456789abcdef.dir"
        return {"path": str(path), "hash": "md5", "md5": md5}

    entries = {
        name: {
            "deps": [file(path) for path in stage.deps],
            "params": {str(paths.PARAMS): {key: value(key) for key in stage.keys}},
            "outs": [file(path) for path in stage.outs],
        }
        for name, stage in stages.items()
    }
    dump_yaml(paths.LOCK, {"schema": "2.0", "stages": entries})


def _captions(count: int, rng: random.Random) -> list[CaptionRow]:
    (paths.DATASET / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        scene = sample_scene(rng)
        text, facts = caption(scene, rng, "medium")
        image = f"images/{number}.png"
        render(scene, rng).save(paths.DATASET / image)
        rows.append(CaptionRow(caption_id=number, image_id=number, caption=text, image=image, facts=facts.to_json()))
    write_rows(paths.EVALUATION_CAPTIONS, rows)
    return rows


def _arm(arm: Arm, captions: list[CaptionRow], rng: random.Random, measured: bool) -> None:
    name, loop = arm.name, arm.draws_several
    folder, gain, liked = paths.arm(name), GAINS.get(name, 0.1), SCORES.get(name, 4.0)
    (folder / "images").mkdir(parents=True)
    finals, drawn, evaluated, of_rounds = [], [], [], []
    for row in captions:
        hard = random.Random(row.caption_id).uniform(0.3, 0.7)
        count = 1 + row.caption_id % 3 if loop else 1
        for number in range(1, count + 1):
            image = f"images/{row.caption_id}-round{number}.png"
            render(sample_scene(rng), rng).save(folder / image)
            last = number == count
            accepted = last and row.caption_id % 5 != 4 if loop else None
            made = ImageRow(
                caption_id=row.caption_id,
                round=number,
                prompt=f"{row.caption}, there is nothing else",
                image=image,
                status="valid" if loop else None,
                p_yes=(0.8 if accepted else 0.2) if loop else None,
                accepted=accepted,
                feedback="the house is red" if loop and not accepted else None,
            )
            drawn.append(made)
            alignment = min(1.0, hard + gain + rng.uniform(-0.05, 0.05) - (0.1 if loop and not accepted else 0))
            of_rounds.append(
                RoundRow(
                    caption_id=row.caption_id,
                    round=number,
                    alignment=alignment if measured else None,
                    whole=alignment > 0.8 if measured else None,
                    p_yes=made.p_yes,
                    accepted=accepted,
                )
            )
        finals.append(made)
        evaluated.append(
            EvaluationRow(
                caption_id=row.caption_id,
                brightness=120 - 10 * liked + rng.uniform(-5, 5),
                contrast=60 + rng.uniform(-3, 3),
                sharpness=0.6 + rng.uniform(-0.1, 0.1),
                alignment=alignment if measured else None,
                whole=alignment > 0.8 if measured else None,
                judge_score=liked + rng.uniform(-1, 1),
                held_out_score=None if row.caption_id == 3 else liked + rng.uniform(-1, 1),
                p_yes=made.p_yes,
                accepted=made.accepted,
                rounds=count,
            )
        )
    write_rows(folder / "images.jsonl", finals)
    write_rows(folder / "rounds.jsonl", drawn)
    write_rows(paths.evaluation(name) / "rounds.jsonl", of_rounds)
    write_rows(paths.evaluation(name) / "per_image.jsonl", evaluated)
    write_json(
        paths.evaluation(name) / "card.json",
        {"n": len(captions), "resolution": 64, "image_format": "png", "templates": "postcards 0123456789ab"},
    )
    found_numbers = {"n": len(captions), "fid": 30.123, "fid_std": 0.5, "is": 5.4, "is_std": 0.2, "diversity": 0.7}
    for key in ("brightness", "contrast", "sharpness", "alignment", "judge_score", "held_out_score"):
        found = [value for line in evaluated if (value := getattr(line, key)) is not None]
        found_numbers |= {key: sum(found) / len(found)} if found else {}
    found_numbers |= {"invalid_judge": 0.0, "invalid_held_out": 1 / len(captions)}
    if loop:
        found_numbers |= {"rounds_mean": 2.0, "rounds_std": 0.8, "acceptance_rate": 0.8, "invalid_validator": 0.0}
    write_json(paths.arm_numbers(name), found_numbers)


def _calibration(rng: random.Random) -> None:
    slopes = {"brightness": -3.0, "contrast": -1.0, "saturation": -2.0, "blur": 1.5}
    rows = [
        CalibrationRow(
            judge=judge,
            trait=trait,
            level=level,
            caption_id=caption_id,
            score=5 + slope * (level - 1) + rng.gauss(0, 0.4),
        )
        for judge in ("postcards", "postcards-judge")
        for trait, slope in slopes.items()
        for level in (0.4, 0.7, 1.0, 1.3, 1.6)
        for caption_id in range(6)
    ]
    write_rows(paths.CALIBRATION / "sweeps.jsonl", rows)
    of_judge = {"rank_correlation": 0.91, "brightness": 0.95, "invalid": 0.0}
    write_json(paths.CALIBRATION_NUMBERS, dict.fromkeys(("postcards", "postcards-judge"), of_judge))
    found = {"balanced_accuracy": 0.93, "auc": 0.97, "invalid": 0.05, "true_captions": 24.0, "retest_agreement": None}
    best = {"best_threshold": 0.4, "best_threshold_accuracy": 0.95}
    write_json(paths.VALIDATOR_NUMBERS, found | best)
    judges = dict.fromkeys(("postcards", "postcards-judge"), of_judge)
    calibration.sweeps(rows, {"brightness": -1}, judges, paths.JUDGE_PLOTS / "sweeps.png")
    calibration.captions("postcards", {"true": (0.9, 10)}, "P(yes) from 0.5", paths.VALIDATOR_PLOTS / "captions.png")


def _finetuning(rng: random.Random) -> None:
    paths.ADAPTER.mkdir(parents=True)
    save_file({"unet.up": np.ones((2, 2), np.float32)}, paths.ADAPTER / "pytorch_lora_weights.safetensors")
    write_rows(paths.ADAPTER / "history.jsonl", history(rng))
    write_json(paths.FINETUNE_NUMBERS, {"reward_mean_last": 6.5, "epochs": 10.0})


def history(rng: random.Random, held_out_gain: float = 0.2, last_diversity: float = 0.9) -> list[EpochRow]:
    """Ten epochs in which the reward rises by 0.25 each."""
    return [
        EpochRow(
            epoch=epoch,
            reward_mean=4 + 0.25 * epoch,
            reward_std=0.8,
            held_out_mean=4 + held_out_gain * epoch,
            masked=0,
            asked=16,
            dead_groups=0.0,
            kl=0.001 * epoch,
            ratio_max=1e-4,
            clipped=0.1,
            grad_norm=0.5,
            diversity=1 - (1 - last_diversity) * (epoch - 1) / 9,
            brightness=110 - 4 * epoch + rng.uniform(-1, 1),
            contrast=60.0,
            sharpness=0.6 - 0.02 * epoch,
        )
        for epoch in range(1, 11)
    ]
