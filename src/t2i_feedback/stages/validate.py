"""validate ARM: the paper's loop, round after round until the validator accepts (arms validated, combined).

`validated` begins with the pictures of `enhanced`; `combined` draws its own with the adapter, from the same noise.
"""

import sys

from t2i_feedback import params
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, PictureRow, PromptRow, read_rows, write_rows
from t2i_feedback.loop import rounds

ADAPTERS = {"validated": None, "combined": paths.ADAPTER}


def main(arm: str = "") -> None:
    if arm not in ADAPTERS:
        raise UserError(f"which arm? one of {', '.join(ADAPTERS)}, not {arm!r}")
    adapter = ADAPTERS[arm]
    p = params.load()
    entry = p.mllms[p.stage1.mllm]
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    prompts = read_rows(paths.FIRST_PROMPTS, PromptRow)
    print(f"validate {arm}: {len(captions)} captions, at most {p.stage1.max_rounds} rounds, judged by {p.stage1.mllm}")
    from t2i_feedback.image_models.drawing import copy_pictures, flagged
    from t2i_feedback.loop.studio import Studio
    from t2i_feedback.mllm import shared

    first_round = adapter or paths.arm("enhanced")
    weights = workspace.weights(p.model.name, entry.model)
    inputs = [paths.EVALUATION_CAPTIONS, paths.FIRST_PROMPTS, first_round, *weights]
    settings: list[workspace.Setting] = [p.seed, p.model, p.stage1, str(decisive(entry))]
    with (
        workspace.partial(f"validate-{arm}", workspace.digest(settings, inputs)) as work,
        shared.open(p.stage1.mllm, entry) as validator,
    ):
        folder = work / "arm"
        if arm == "validated":
            enhanced = paths.arm("enhanced")
            copy_pictures(read_rows(enhanced / "pictures.jsonl", PictureRow), enhanced, folder)
        studio = Studio(p, adapter, folder, validator, prompts)
        pictures = rounds.run_rounds(
            captions,
            prompts,
            studio.loop_roles(),
            max_rounds=p.stage1.max_rounds,
            threshold=p.stage1.threshold,
            feedback=p.stage1.feedback,
        )
        pictures = flagged(folder, pictures)
        final = [rounds.keep(rows) for rows in rounds.by_caption(pictures).values()]
        if distributed.is_main():
            write_rows(folder / "rounds.jsonl", pictures)
            write_rows(folder / "pictures.jsonl", final)
            workspace.publish(folder, paths.arm(arm))
    accepted = sum(bool(row.accepted) for row in final)
    print(f"validate {arm}: {accepted} of {len(final)} accepted, {len(pictures) / len(final):.2f} rounds on average")


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
