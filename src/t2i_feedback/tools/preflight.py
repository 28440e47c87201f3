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
    print(f"preflight: {p.model.name}, {p.model.steps} steps, guidance {p.model.guidance:g}, eta {p.finetune.eta:g}")
    from t2i_feedback.finetuning import preflight
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.finetuning.trainer import Trainer
    from t2i_feedback.foundation import photometry
    from t2i_feedback.image_models.lora import add_adapter
    from t2i_feedback.image_models.stable_diffusion import load_pipeline

    pipe = load_pipeline(p.model, training=True)
    config = p.finetune
    parameters = add_adapter(pipe.unet, config.lora_rank, config.lora_alpha, config.lora_targets, p.seed)
    with tempfile.TemporaryDirectory() as nowhere:
        worst = Trainer(
            pipe,
            parameters,
            [row.caption for row in captions],
            Scorer(lambda images, prompts: [None] * len(images)),
            photometry.means,
            model=p.model,
            finetune=config,
            seed=p.seed,
            folder=Path(nowhere),
        ).preflight()
    count = sum(parameter.numel() for parameter in parameters)
    print(
        f"preflight: the importance ratio is 1 within {worst:.1e} (limit {preflight.limit(config.clip_range):.1e}), "
        f"every log-probability is finite and every sigma above 0; {count:,} parameters would be trained"
    )


if __name__ == "__main__":
    running.run(main)
