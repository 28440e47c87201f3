"""generate ARM: draw one picture per evaluation caption (arms raw, enhanced, finetuned)."""

import sys
from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, PictureRow, PromptRow, as_typed, read_rows, write_rows

ARMS = {  # arm -> where its prompts come from, the adapter it draws with
    "raw": (paths.EVALUATION_CAPTIONS, None),
    "enhanced": (paths.FIRST_PROMPTS, None),
    "finetuned": (paths.EVALUATION_CAPTIONS, paths.ADAPTER),
}


def main(arm: str = "") -> None:
    if arm not in ARMS:
        raise UserError(f"which arm? one of {', '.join(ARMS)}, not {arm!r}")
    source, adapter = ARMS[arm]
    p = params.load()
    prompts = read_prompts(source)
    drawer = f"{p.model.name} + adapter" if adapter else p.model.name
    print(f"generate {arm}: {len(prompts)} pictures, {p.model.steps} steps each, by {drawer}")
    from t2i_feedback.image_models.base import tokens_lost
    from t2i_feedback.image_models.drawing import draw_missing, flagged, image_name
    from t2i_feedback.image_models.stable_diffusion import load_pipeline, load_tokenizer

    inputs = [source, *([adapter] if adapter else []), *workspace.weights(p.model.name)]
    with workspace.partial(f"generate-{arm}", workspace.digest([p.seed, p.model], inputs)) as work:
        draw_missing(
            lambda: load_pipeline(p.model, adapter),
            prompts,
            work / "arm",
            model=p.model,
            seed=p.seed,
            title=arm,
            adapter=adapter,
        )
        lost = tokens_lost(load_tokenizer(p.model), [row.prompt for row in prompts])
        rows = [
            PictureRow(
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
            write_rows(work / "arm/pictures.jsonl", rows)
            workspace.publish(work / "arm", paths.arm(arm))
    found = sum(bool(row.flagged) for row in rows)
    warned = f"; {found} of {len(rows)} flagged by the safety checker" if found else ""
    print(f"generate {arm}: done, {paths.arm(arm)}/images{warned}")


def read_prompts(source: Path) -> list[PromptRow]:
    if source == paths.FIRST_PROMPTS:
        return read_rows(source, PromptRow)
    return as_typed(read_rows(source, CaptionRow))


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
