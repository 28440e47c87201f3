"""A data set, a tiny image model and the shipped judges: what a chain of stages by hand begins with."""

import os
from pathlib import Path

import tiny_diffusion
import workplaces

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.files import write_json
from t2i_feedback.stages import data

CAPTIONS, BATCH = 10, 4  # three batches: the first of two processes draws two of them


EVALUATE = {
    "resamples": 50,
    "splits": 2,
    "kid_subset": 4,
    "neighbourhood": 3,
    "kid_subsets": 3,
    "max_invalid_fraction": 1.0,
}  # of a handful of images


def parameters(steps: int = 2, **finetune) -> dict:
    p = workplaces.ours() | {"seed": 3}  # with which no gradient is next to nothing, whose sign rounding would choose
    p["data"] |= {"evaluation_captions": CAPTIONS, "reference_images": CAPTIONS, "finetune_captions": 4}
    p["model"] |= {"name": "sd", "size": tiny_diffusion.SIZE, "steps": steps, "batch_size": BATCH, "device": "cpu"}
    p["stage1"] |= {"max_rounds": 2, "max_invalid_fraction": 1.0}
    known = {"judge": "postcards", "max_invalid_fraction": 1.0}
    p["finetune"] |= tiny_diffusion.finetune(**known | finetune).model_dump()
    p["evaluate"] |= EVALUATE
    return p


def prepare(folder: Path, **finetune) -> Path:
    """In this folder; the parameters of fine-tuning as given."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        tiny_diffusion.pipeline(folder / "tokenizer").save_pretrained("sd")
        workplaces.furnish(parameters(**finetune))
        write_json(paths.CALIBRATION_NUMBERS, {"postcards": {"rank_correlation": None}})
        data.main()
    finally:
        os.chdir(before)
    return folder
