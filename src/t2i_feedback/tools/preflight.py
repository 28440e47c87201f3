"""preflight: would fine-tuning train on the right numbers? Replays a small rollout of the present parameters.

No MLLM is asked and nothing is written. `finetune` does the same before its first question. Not a stage of the DAG.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback import params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.rows import CaptionRow, read_rows
from t2i_feedback.params import Params
from t2i_feedback.tools import data_set

if TYPE_CHECKING:
    from t2i_feedback.finetuning.trainer import Trainer
    from t2i_feedback.image_models.base import ImageModel


def unrewarded(p: Params, image_model: "ImageModel", prompts: list[str], folder: str) -> "Trainer":
    """The trainer of these parameters, with a new adapter, whose images nobody scores."""
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.finetuning.trainer import Trainer
    from t2i_feedback.foundation import photometry

    config = p.finetune
    return Trainer(
        image_model,
        image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, p.seed),
        prompts,
        Scorer(lambda images, prompts: [None] * len(images)),
        photometry.means,
        model=p.model,
        finetune=config,
        seed=p.seed,
        folder=Path(folder),
    )


def main() -> None:
    p = params.load()
    data_set.demand(paths.FINETUNE_CAPTIONS)
    captions = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    print(
        f"preflight: {p.model.name}, {p.finetune.steps_of(p.model.steps)} steps, guidance "
        f"{p.finetune.guidance_of(p.model.guidance):g}, {p.finetune.objective}, "
        f"noise {p.finetune.noise.kind} {p.finetune.noise.level:g}"
    )
    from t2i_feedback.finetuning import preflight
    from t2i_feedback.image_models.loading import load_image_model

    with tempfile.TemporaryDirectory() as nowhere:
        trainer = unrewarded(p, load_image_model(p.model, training=True), [row.caption for row in captions], nowhere)
        floors = trainer.preflight()
    for step, floor in floors.items():
        print(f"step {step + 1:3d}: |ratio - 1| up to {floor:.1e}")
    count = sum(parameter.numel() for parameter in trainer.parameters)
    if not floors:
        print(f"preflight: {p.finetune.objective} is no policy gradient, so no ratio is checked; {count:,} parameters")
        return
    floor = max(floors.values())
    print(
        f"preflight: before any update the importance ratio is 1 within {floor:.1e}, the floor that rounding sets: "
        f"finetune.clip_range, {p.finetune.clip_range:g}, may be as small as {floor / preflight.SHARE:.1e}; every "
        f"log-probability is finite; {count:,} parameters would be trained"
    )


if __name__ == "__main__":
    running.run(main)
