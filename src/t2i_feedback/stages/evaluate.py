"""evaluate ARM: measure an arm's pictures, one by one (per_image.jsonl) and together (metrics/arms/ARM.json).

Every arm is measured alike: one pass for features and photometry, then alignment with the caption's facts, the training
judge, the held-out judge and the validator (unless that reads text alone); CLIPScore, VQAScore and the validator's
answers item by item where params.yaml asks for them. Answers that are not valid stay None; their share stands beside
the means.
"""

import sys
from collections import Counter
from pathlib import Path

from t2i_feedback import arms, params
from t2i_feedback.evaluation import measuring, protocol
from t2i_feedback.foundation import distributed, paths, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, FidRow, PictureRow, read_rows, write_rows


def main(arm: str = "") -> None:
    arms.by_name(arm)
    p = params.load()
    for needed in (paths.REFERENCE, paths.ORACLE):
        if not needed.exists():
            raise UserError(f"{needed} is missing: run `dvc repro`, or `git checkout` for what the repository holds")
    folder = paths.arm(arm)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    drawn = read_rows(folder / "rounds.jsonl", PictureRow)
    pictures = measuring.in_order(read_rows(folder / "pictures.jsonl", PictureRow), captions, folder)
    if p.model.safety_checker == "on":
        measuring.refuse_black(drawn, folder)
    mllm, sees = p.stage1.mllm, p.mllms[p.stage1.mllm].images
    asked = protocol.roles_asked(p.evaluate, p.finetune.judge, mllm, sees)
    who = ", ".join(f"{role.replace('_', '-')} {name}" for role, name in asked.items())
    print(f"evaluate {arm}: {len(pictures)} pictures; {p.evaluate.extractor}, {who}", flush=True)
    from t2i_feedback.mllm import panel

    entries = [str(decisive(p.mllms[name])) for name in asked.values()]
    settings: list[workspace.Setting] = [p.seed, p.model, p.evaluate, p.finetune.preference]
    settings += [p.stage1.threshold, p.stage1.questions, *asked.values(), *entries]
    inputs = [paths.EVALUATION_CAPTIONS, paths.REFERENCE, paths.ORACLE, folder]
    inputs += [Path(name) for name in (p.evaluate.weights, p.evaluate.clip_score) if name and Path(name).exists()]
    with workspace.partial(f"evaluate-{arm}", workspace.digest(settings, inputs)) as work:
        out = work / "evaluation"
        out.mkdir(exist_ok=True)
        images, files = measuring.MeasuredFiles(), [folder / picture.image for picture in pictures]
        fidelity = measuring.fidelity_of(
            images,
            files,
            p.evaluate,
            size=p.evaluate.size or p.model.size,
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
            preference=p.finetune.preference,
            questions=p.stage1.questions,
            max_invalid_fraction=p.evaluate.max_invalid_fraction,
        )
        counts = Counter(row.caption_id for row in drawn)
        threshold = p.stage1.threshold
        rows = measuring.per_image(images, folder, pictures, counts, alignments, answers, clip, threshold)
        metrics = {"n": len(rows)} | fidelity.numbers | measuring.means(rows) | panel.invalid_shares(answers)
        metrics |= measuring.prompt_lengths(pictures) | measuring.flags(pictures)
        reference = protocol.reference_card(paths.REFERENCE)
        card = protocol.card(
            reference,
            len(rows),
            p.seed,
            p.model.card(),
            p.evaluate.card(reference["classes"], mllm),
            p.stage1.card(sees),
            {"preference": p.finetune.preference, "judge": p.finetune.judge},
            panel.card(asked, p.mllms, answers),
        )
        if distributed.is_main():
            write_rows(out / "per_image.jsonl", rows)
            write_rows(out / "rounds.jsonl", (measuring.round_row(row, alignments[row.image]) for row in drawn))
            curve = (FidRow(n=n, fid=fid.value, fid_std=fid.std) for n, fid in fidelity.by_n)
            write_rows(out / "fid_by_n.jsonl", curve)
            write_json(out / "card.json", card)
            workspace.publish(out, paths.evaluation(arm))
            write_json(paths.arm_metrics(arm), metrics)
    shown = (name for name in ("fid", "alignment", "judge_score", "held_out_score") if name in metrics)
    print(f"evaluate {arm}: done, {', '.join(f'{name} {metrics[name]:.4g}' for name in shown)}")


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
