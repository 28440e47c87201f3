"""generate ARM: draw one image per evaluation caption. dvc.yaml says of which prompts, and by which weights."""

import sys

from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.params import Keys, Seed, load
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, PromptRow, as_typed, read_rows, write_rows
from t2i_feedback.image_models.section import Model

DIVIDED = True  # among several processes


class Settings(Keys):
    seed: Seed
    model: Model


def main(arm: str = "") -> None:
    stage = pipeline.running("generate", arm)
    p = load(Settings)
    adapter = paths.ADAPTER if stage.needs(paths.ADAPTER) else None
    if stage.needs(paths.FIRST_PROMPTS):
        prompts = read_rows(paths.FIRST_PROMPTS, PromptRow)
    else:
        prompts = as_typed(read_rows(paths.EVALUATION_CAPTIONS, CaptionRow))
    drawer = f"{p.model.name} + adapter" if adapter else p.model.name
    print(f"generate {arm}: {len(prompts)} images, {p.model.steps} steps each, by {drawer}")
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.drawing import draw_missing, flagged, image_name
    from t2i_feedback.image_models.loading import load_image_model, load_tokenizer

    with workspace.unfinished(stage, p) as work:
        draw_missing(
            lambda: load_image_model(p.model, adapter),
            prompts,
            work / "arm",
            model=p.model,
            seed=p.seed,
            title=arm,
            adapter=adapter,
        )
        lost = tokens_lost(load_tokenizer(p.model), [row.prompt for row in prompts])
        rows = [
            ImageRow(
                caption_id=row.caption_id,
                round=1,
                prompt=row.prompt,
                image=image_name(row.caption_id, 1),
                tokens_lost=count,
            )
            for row, count in zip(prompts, lost, strict=True)
        ]
        rows = flagged(work / "arm", rows)
        if distributed.is_main():
            write_rows(work / "arm/rounds.jsonl", rows)
            write_rows(work / "arm/images.jsonl", rows)
            workspace.publish(stage, p, work / "arm", paths.arm(arm))
    found = sum(bool(row.flagged) for row in rows)
    warned = f"; {found} of {len(rows)} flagged by the safety checker" if found else ""
    print(f"generate {arm}: done, {paths.arm(arm)}/images{warned}")


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
