"""preflight: would fine-tuning train on the right numbers? Replays a small rollout of the present parameters.

No MLLM is asked and nothing is written. `finetune` does the same before its first question. Not a stage of the DAG.
"""

import tempfile
from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.rows import CaptionRow, read_rows


def main() -> None:
    p = params.load()
    captions = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    print(
        f"preflight: {p.model.name}, {p.finetune.steps_of(p.model.steps)} steps, guidance "
        f"{p.finetune.guidance_of(p.model.guidance):g}, {p.finetune.objective}, "
        f"noise {p.finetune.noise.kind} {p.finetune.noise.level:g}"
    )
    from t2i_feedback.finetuning import preflight
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.finetuning.trainer import Trainer
    from t2i_feedback.foundation import photometry
    from t2i_feedback.image_models.loading import load_image_model

    image_model = load_image_model(p.model, training=True)
    config = p.finetune
    parameters = image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, p.seed)
    with tempfile.TemporaryDirectory() as nowhere:
        floors = Trainer(
            image_model,
            parameters,
            [row.caption for row in captions],
            Scorer(lambda images, prompts: [None] * len(images)),
            photometry.means,
            model=p.model,
            finetune=config,
            seed=p.seed,
            folder=Path(nowhere),
        ).preflight()
    for step, floor in floors.items():
        print(f"step {step + 1:3d}: |ratio - 1| up to {floor:.1e}")
    count = sum(parameter.numel() for parameter in parameters)
    if not floors:
        print(f"preflight: {config.objective} is no policy gradient, so no ratio is checked; {count:,} parameters")
        return
    floor = max(floors.values())
    print(
        f"preflight: before any update the importance ratio is 1 within {floor:.1e}, the floor that rounding sets: "
        f"finetune.clip_range, {config.clip_range:g}, may be as small as {floor / preflight.SHARE:.1e}; every "
        f"log-probability is finite; {count:,} parameters would be trained"
    )


if __name__ == "__main__":
    running.run(main)
