"""validate ARM: the paper's loop, round after round until the validator accepts.

The images of the first round are another arm's, or drawn with the adapter from the same noise, as dvc.yaml says.
"""

import sys
from pathlib import Path

from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.params import Keys, Seed, load
from t2i_feedback.foundation.rows import CaptionRow, PromptRow, read_rows, write_rows
from t2i_feedback.image_models.section import Model
from t2i_feedback.loop import rounds
from t2i_feedback.loop.section import Stage1
from t2i_feedback.mllm.section import Catalogue

DIVIDED = True  # among several processes


class Settings(Keys):
    seed: Seed
    model: Model
    stage1: Stage1
    mllms: Catalogue


def main(arm: str = "") -> None:
    stage = pipeline.running("validate", arm)
    p = load(Settings)
    adapter = paths.ADAPTER if stage.needs(paths.ADAPTER) else None
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    prompts = read_rows(paths.FIRST_PROMPTS, PromptRow)
    print(
        f"validate {arm}: {len(captions)} captions, at most {p.stage1.max_rounds} rounds, validated by {p.stage1.mllm}"
    )
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.drawing import flagged
    from t2i_feedback.image_models.loading import load_tokenizer
    from t2i_feedback.image_models.round_drawing import RoundDrawer
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.enhancing import Enhancer
    from t2i_feedback.mllm.validating import Validator

    limit = ("stage1.max_invalid_fraction", p.stage1.max_invalid_fraction)
    with (
        workspace.unfinished(stage, p) as work,
        shared.connect(p.stage1.mllm, p.mllms[p.stage1.mllm], paths.ledger(), max_invalid=limit) as model,
    ):
        folder = work / "arm"
        drawer = RoundDrawer(p.model, adapter, folder, p.seed)
        validator = Validator(model, folder, questions=p.stage1.questions, max_invalid_fraction=limit[1])
        enhancer = Enhancer(
            model,
            lambda texts: tokens_lost(load_tokenizer(p.model), texts),
            limit[1],
            prompts,
            p.stage1.temperature,
            p.seed,
        )
        for source in (Path(dep) for dep in stage.deps if Path(dep).parent == paths.ARMS):
            drawer.copy_first(source)
        images = rounds.run_rounds(
            captions,
            prompts,
            rounds.Roles(drawer.draw, validator.validate, validator.explain, enhancer.enhance),
            max_rounds=p.stage1.max_rounds,
            threshold=p.stage1.threshold,
            feedback=p.stage1.feedback,
        )
        images = flagged(folder, images)
        final = [rounds.keep(rows) for rows in rounds.by_caption(images).values()]
        if distributed.is_main():
            write_rows(folder / "rounds.jsonl", images)
            write_rows(folder / "images.jsonl", final)
            workspace.publish(stage, p, folder, paths.arm(arm))
    accepted = sum(bool(row.accepted) for row in final)
    print(f"validate {arm}: {accepted} of {len(final)} accepted, {len(images) / len(final):.2f} rounds on average")


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
