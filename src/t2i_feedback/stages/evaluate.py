"""evaluate ARM: measure an arm's images, one by one (per_image.jsonl) and together (numbers.json).

Every arm is measured alike: one pass for features and photometry, then alignment with the caption's facts, the training
judge, the held-out judge and the validator (unless that reads text alone); CLIPScore, VQAScore and the validator's
answers item by item where params.yaml asks for them. Answers that are not valid stay None; their share stands beside
the means.
"""

import sys
from collections import Counter

from t2i_feedback.evaluation import measuring, protocol
from t2i_feedback.evaluation.section import Evaluate
from t2i_feedback.foundation import distributed, paths, pipeline, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import EntryName, Keys, Seed, Share, key, load
from t2i_feedback.foundation.rows import CaptionRow, FidRow, ImageRow, read_rows, write_rows
from t2i_feedback.image_models.section import Model
from t2i_feedback.loop.section import validator_card
from t2i_feedback.mllm.section import Catalogue

DIVIDED = True  # among several processes


class Settings(Keys):
    seed: Seed
    model: Model
    mllms: Catalogue
    evaluate: Evaluate
    judge: EntryName = key("finetune.judge")
    preference: str = key("finetune.preference")
    validator: EntryName = key("stage1.mllm")
    threshold: Share = key("stage1.threshold")
    questions: bool = key("stage1.questions")


def main(arm: str = "") -> None:
    stage = pipeline.running("evaluate", arm)
    p = load(Settings)
    for needed in (paths.REFERENCE, paths.ORACLE):
        if not needed.exists():
            raise UserError(f"{needed} is missing: run `dvc repro`, or `git checkout` for what the repository holds")
    folder = paths.arm(arm)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    drawn = read_rows(folder / "rounds.jsonl", ImageRow)
    kept = measuring.in_order(read_rows(folder / "images.jsonl", ImageRow), captions, folder)
    if p.model.safety_checker == "on":
        measuring.refuse_black(drawn, folder)
    sees = p.mllms[p.validator].images
    asked = protocol.roles_asked(p.evaluate, p.judge, p.validator, sees)
    who = ", ".join(f"{role.replace('_', '-')} {name}" for role, name in asked.items())
    print(f"evaluate {arm}: {len(kept)} images; {p.evaluate.extractor}, {who}", flush=True)
    from t2i_feedback.mllm import panel

    with workspace.unfinished(stage, p) as work:
        out = work / "evaluation"
        out.mkdir(exist_ok=True)
        images, files = measuring.MeasuredFiles(), [folder / row.image for row in kept]
        fidelity = measuring.fidelity_of(
            images,
            files,
            p.evaluate,
            size=p.evaluate.size or min(p.model.width, p.model.height),
            device=p.model.device,
            seed=p.seed,
            reference=paths.REFERENCE,
            kept=out / "features.safetensors",
        )
        alignments = measuring.align(paths.ORACLE, images, captions, drawn, folder)
        clip = measuring.clip_scores(p.evaluate.clip_score, p.model.device, images, captions, files)
        answers = panel.ask(
            asked,
            p.mllms,
            lambda chunk: images.open_all(files[chunk]),
            [caption.caption for caption in captions],
            ledger=paths.ledger(),
            preference=p.preference,
            questions=p.questions,
            max_invalid_fraction=p.evaluate.max_invalid_fraction,
        )
        counts = Counter(row.caption_id for row in drawn)
        rows = measuring.per_image(images, folder, kept, counts, alignments, answers, clip, p.threshold)
        metrics = {"n": len(rows)} | fidelity.numbers | measuring.means(rows) | panel.invalid_shares(answers)
        metrics |= measuring.prompt_lengths(kept) | measuring.flags(kept)
        reference = protocol.reference_card(paths.REFERENCE)
        card = protocol.card(
            reference,
            len(rows),
            p.seed,
            p.model.card(),
            p.evaluate.card(reference["classes"], p.validator),
            validator_card(p.validator, sees, p.questions, p.threshold),
            {"preference": p.preference, "judge": p.judge},
            panel.card(asked, p.mllms, answers, paths.ledger()),
        )
        if distributed.is_main():
            write_rows(out / "per_image.jsonl", rows)
            write_rows(out / "rounds.jsonl", (measuring.round_row(row, alignments[row.image]) for row in drawn))
            curve = (FidRow(n=n, fid=fid.value, fid_std=fid.std) for n, fid in fidelity.by_n)
            write_rows(out / "fid_by_n.jsonl", curve)
            write_json(out / "card.json", card)
            write_json(out / paths.arm_numbers(arm).name, metrics)
            workspace.publish(stage, p, out, paths.evaluation(arm))
    shown = (name for name in ("fid", "alignment", "judge_score", "held_out_score") if name in metrics)
    print(f"evaluate {arm}: done, {', '.join(f'{name} {metrics[name]:.4g}' for name in shown)}")


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
