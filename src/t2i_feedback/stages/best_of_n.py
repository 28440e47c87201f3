"""best_of_n: the control for the loop. As many images per caption as `validated` used, no feedback; P(yes) picks.

Every image has the prompt of round 1 and the noise of its round, so only the feedback differs from `validated`.
"""

from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.params import Keys, Seed, load
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, PromptRow, read_rows, write_rows
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


def main() -> None:
    stage = pipeline.running("best_of_n")
    p = load(Settings)
    captions = {row.caption_id: row for row in read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)}
    prompts = {row.caption_id: row for row in read_rows(paths.FIRST_PROMPTS, PromptRow)}
    budget = rounds.by_caption(read_rows(paths.arm("validated") / "rounds.jsonl", ImageRow))
    wanted = [
        prompts[caption_id].model_copy(update={"round": number})
        for caption_id, used in budget.items()
        for number in range(1, len(used) + 1)
    ]
    print(f"best_of_n: {len(wanted)} images for {len(budget)} captions, as many as validated used")
    from t2i_feedback.image_models.drawing import flagged, image_name
    from t2i_feedback.image_models.round_drawing import RoundDrawer
    from t2i_feedback.mllm import shared
    from t2i_feedback.mllm.validating import Validator

    limit = ("stage1.max_invalid_fraction", p.stage1.max_invalid_fraction)
    with (
        workspace.unfinished(stage, p) as work,
        shared.connect(p.stage1.mllm, p.mllms[p.stage1.mllm], paths.ledger(), max_invalid=limit) as model,
    ):
        folder = work / "arm"
        drawer = RoundDrawer(p.model, None, folder, p.seed)
        drawer.copy_first(paths.arm("enhanced"))
        again = [row for row in wanted if row.round > 1]
        if again:
            drawer.draw(again)
        drawn = [
            ImageRow(
                caption_id=row.caption_id,
                round=row.round,
                prompt=row.prompt,
                image=image_name(row.caption_id, row.round),
                tokens_lost=row.tokens_lost,
            )
            for row in wanted
        ]
        validator = Validator(model, folder, questions=p.stage1.questions, max_invalid_fraction=limit[1])
        asked = [captions[row.caption_id] for row in wanted]
        verdicts = rounds.verdicts_on(asked, [row.image for row in drawn], validator.validate)
        judged = rounds.with_verdicts(drawn, verdicts, p.stage1.threshold)
        judged = flagged(folder, judged)
        final = [rounds.best(rows) for rows in rounds.by_caption(judged).values()]
        if distributed.is_main():
            write_rows(folder / "rounds.jsonl", judged)
            write_rows(folder / "images.jsonl", final)
            workspace.publish(stage, p, folder, paths.arm("best_of_n"))
    print(f"best_of_n: {sum(bool(row.accepted) for row in final)} of {len(final)} would be accepted")


if __name__ == "__main__":
    running.run(main)
