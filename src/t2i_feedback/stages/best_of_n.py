"""best_of_n: the control for the loop. As many pictures per caption as `validated` used, no feedback; P(yes) picks.

Every picture has the prompt of round 1 and the noise of its round, so only the feedback differs from `validated`.
"""

from t2i_feedback import params
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, PictureRow, PromptRow, read_rows, write_rows
from t2i_feedback.loop import rounds


def main() -> None:
    p = params.load()
    entry = p.mllms[p.stage1.mllm]
    captions = {row.caption_id: row for row in read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)}
    prompts = {row.caption_id: row for row in read_rows(paths.FIRST_PROMPTS, PromptRow)}
    budget = rounds.by_caption(read_rows(paths.arm("validated") / "rounds.jsonl", PictureRow))
    wanted = [
        prompts[caption_id].model_copy(update={"round": number})
        for caption_id, used in budget.items()
        for number in range(1, len(used) + 1)
    ]
    print(f"best_of_n: {len(wanted)} pictures for {len(budget)} captions, as many as validated used")
    from t2i_feedback.image_models.drawing import copy_pictures, flagged, image_name
    from t2i_feedback.loop.studio import Studio
    from t2i_feedback.mllm import shared

    weights = workspace.weights(p.model.name, entry.model)
    inputs = [paths.EVALUATION_CAPTIONS, paths.FIRST_PROMPTS, paths.arm("enhanced"), paths.arm("validated"), *weights]
    settings: list[workspace.Setting] = [p.seed, p.model, p.stage1, str(decisive(entry))]
    with (
        workspace.partial("best_of_n", workspace.digest(settings, inputs)) as work,
        shared.open(p.stage1.mllm, entry) as validator,
    ):
        folder = work / "arm"
        enhanced = paths.arm("enhanced")
        copy_pictures(read_rows(enhanced / "pictures.jsonl", PictureRow), enhanced, folder)
        studio = Studio(p, None, folder, validator, list(prompts.values()))
        again = [row for row in wanted if row.round > 1]
        if again:
            studio.draw(again)
        drawn = [
            PictureRow(
                caption_id=row.caption_id,
                round=row.round,
                prompt=row.prompt,
                image=image_name(row.caption_id, row.round),
                tokens_lost=row.tokens_lost,
            )
            for row in wanted
        ]
        judged = rounds.judge([captions[row.caption_id] for row in wanted], drawn, studio.validate, p.stage1.threshold)
        judged = flagged(folder, judged)
        final = [rounds.best(rows) for rows in rounds.by_caption(judged).values()]
        if distributed.is_main():
            write_rows(folder / "rounds.jsonl", judged)
            write_rows(folder / "pictures.jsonl", final)
            workspace.publish(folder, paths.arm("best_of_n"))
    print(f"best_of_n: {sum(bool(row.accepted) for row in final)} of {len(final)} would be accepted")


if __name__ == "__main__":
    running.run(main)
