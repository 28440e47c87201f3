"""generate ARM: draw one picture per evaluation caption (arms raw, enhanced, finetuned)."""

import sys
from pathlib import Path

from t2i_feedback import params, paths, processes, records, stages, workspace
from t2i_feedback.errors import UserError

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
    from t2i_feedback.diffusion.gallery import draw_missing, flagged, image_name
    from t2i_feedback.diffusion.load import load_pipeline, load_tokenizer
    from t2i_feedback.diffusion.sampling import tokens_lost

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
            records.PictureRow(
                caption_id=row.caption_id,
                round=1,
                prompt=row.prompt,
                image=image_name(row.caption_id, 1),
                tokens_lost=count,
            )
            for row, count in zip(prompts, lost, strict=True)
        ]
        rows = flagged(work / "arm", rows)
        if processes.first():
            records.write(work / "arm/rounds.jsonl", rows)
            records.write(work / "arm/pictures.jsonl", rows)
            workspace.publish(work / "arm", paths.arm(arm))
    found = sum(bool(row.flagged) for row in rows)
    warned = f"; {found} of {len(rows)} flagged by the safety checker" if found else ""
    print(f"generate {arm}: done, {paths.arm(arm)}/images{warned}")


def read_prompts(source: Path) -> list[records.PromptRow]:
    if source == paths.FIRST_PROMPTS:
        return records.read(source, records.PromptRow)
    return records.as_typed(records.read(source, records.CaptionRow))


if __name__ == "__main__":
    stages.run(main, *sys.argv[1:])
