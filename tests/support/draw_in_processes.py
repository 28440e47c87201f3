"""A program: draw six prompts with a tiny checkpoint, in one process or in several.

python -m torch.distributed.run --nproc-per-node 2 tests/support/draw_in_processes.py CHECKPOINT FOLDER
"""

import sys
from pathlib import Path

import tiny_diffusion
import tiny_families

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.rows import PromptRow
from t2i_feedback.image_models.drawing import draw_missing
from t2i_feedback.image_models.loading import load_image_model


def main(checkpoint: str, folder: str) -> None:
    model = tiny_diffusion.model(
        name=checkpoint, size=tiny_families.SIZE, scheduler="auto", max_sequence_length=3, batch_size=2
    )
    prompts = [PromptRow(caption_id=n, round=1, prompt=f"a cat {'b' * n}", status="valid") for n in range(6)]
    draw_missing(lambda: load_image_model(model), prompts, Path(folder), model=model, seed=7, title="test")
    distributed.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])
