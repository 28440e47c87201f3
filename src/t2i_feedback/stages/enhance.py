"""enhance: the MLLM rewrites every evaluation caption as a detailed prompt (round 1 of stage 1)."""

from typing import Annotated

from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.params import FREE, EntryName, Keys, Seed, Share, key, load
from t2i_feedback.foundation.rows import CaptionRow, read_rows, write_rows
from t2i_feedback.image_models.section import Model
from t2i_feedback.mllm.section import Catalogue

DIVIDED = True  # among several processes


class Settings(Keys):
    seed: Seed
    model: Model
    temperature: float = key("stage1.temperature")
    mllm: EntryName = key("stage1.mllm")
    max_invalid_fraction: Annotated[Share, FREE] = key("stage1.max_invalid_fraction")
    mllms: Catalogue


def main() -> None:
    stage = pipeline.running("enhance")
    p = load(Settings)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    entry = p.mllms[p.mllm]
    print(f"enhance: {p.mllm} rewrites {len(captions)} captions")
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.loading import load_tokenizer
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import Enhancer

    limit = ("stage1.max_invalid_fraction", p.max_invalid_fraction)
    with (
        workspace.unfinished(stage, p) as work,
        shared.connect(p.mllm, entry, paths.ledger(), entry.images, limit) as model,
    ):
        enhancer = Enhancer(
            model,
            lambda texts: tokens_lost(load_tokenizer(p.model), texts),
            p.max_invalid_fraction,
            temperature=p.temperature,
            seed=p.seed,
        )
        rows = enhancer.first_prompts(captions)
        if distributed.is_main():
            finished = work / "prompts"
            write_rows(finished / paths.FIRST_PROMPTS.name, rows)
            workspace.publish(stage, p, finished, paths.PROMPTS)
    cut = [row.tokens_lost for row in rows if row.tokens_lost]
    print(
        f"enhance: {sum(row.status == 'valid' for row in rows)} prompts, {len(cut)} of them longer than the image "
        f"model's window ({sum(cut)} tokens lost)"
    )


if __name__ == "__main__":
    running.run(main)
