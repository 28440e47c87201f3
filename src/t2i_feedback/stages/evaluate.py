"""evaluate ARM: measure an arm's pictures, one by one (per_image.jsonl) and together (metrics/arms/ARM.json).

Every arm is measured alike: one pass for features and photometry, then alignment with the caption's facts, the training
judge, the held-out judge and the validator (unless that reads text alone); CLIPScore, VQAScore and the validator's
answers item by item where params.yaml asks for them. Answers that are not valid stay None; their share stands beside
the means. Every picture file is decoded once, as far as memory allows (evaluation/reading.py).
"""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from t2i_feedback import params
from t2i_feedback.evaluation import reading
from t2i_feedback.foundation import distributed, paths, photometry, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.params import decisive
from t2i_feedback.foundation.rows import CaptionRow, EvaluationRow, FidRow, PictureRow, RoundRow, read_rows, write_rows

if TYPE_CHECKING:
    from t2i_feedback.evaluation.alignment import Alignment
    from t2i_feedback.evaluation.fidelity import Fidelity
    from t2i_feedback.mllm.roles import Typed

CHUNK = 512  # pictures asked about together
ORACLE_SIDE = 64  # pixels


class Looked(reading.Pictures):
    """Pictures whose light is measured when they are first opened for it."""

    def __init__(self) -> None:
        super().__init__(open_rgb, reading.KEPT_BYTES // distributed.world_size())
        self._light: dict[Path, dict[str, float]] = {}

    def look(self, file: Path) -> Image.Image:
        image = self.open(file)
        if file not in self._light:
            self._light[file] = photometry.measure(image)
        return image

    def light(self, file: Path) -> dict[str, float]:
        """Brightness, contrast and sharpness."""
        if file not in self._light:
            self.look(file)
        return self._light[file]


def main(arm: str = "") -> None:
    if arm not in paths.ARMS:
        raise UserError(f"which arm? one of {', '.join(paths.ARMS)}, not {arm!r}")
    p = params.load()
    for needed in (paths.REFERENCE, paths.ORACLE):
        if not needed.exists():
            raise UserError(f"{needed} is missing: run `dvc repro`, or `git checkout` for what the repository holds")
    folder = paths.arm(arm)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    rounds = read_rows(folder / "rounds.jsonl", PictureRow)
    pictures = in_order(read_rows(folder / "pictures.jsonl", PictureRow), captions, folder)
    refuse_black(p, rounds, folder)
    asked = roles_asked(p)
    who = ", ".join(f"{role.replace('_', '-')} {name}" for role, name in asked.items())
    print(f"evaluate {arm}: {len(pictures)} pictures; {p.evaluate.extractor}, {who}", flush=True)

    entries = [str(decisive(p.mllms[name])) for name in asked.values()]
    stage1 = [p.stage1.threshold, p.stage1.questions]
    settings: list[workspace.Setting] = [
        p.seed,
        p.model,
        p.evaluate,
        p.finetune.preference,
        *stage1,
        *asked.values(),
        *entries,
    ]
    inputs = [paths.EVALUATION_CAPTIONS, paths.REFERENCE, paths.ORACLE, folder]
    inputs += [Path(name) for name in (p.evaluate.weights, p.evaluate.clip_score) if name and Path(name).exists()]
    with workspace.partial(f"evaluate-{arm}", workspace.digest(settings, inputs)) as work:
        out = work / "evaluation"
        out.mkdir(exist_ok=True)
        looked, files = Looked(), [folder / picture.image for picture in pictures]
        fidelity = measure_fidelity(p, looked, files, out / "features.safetensors")
        alignments = align(looked, captions, rounds, folder)
        clip = clip_scores(p, looked, captions, files)
        answers = ask(p, asked, looked, captions, files)
        drawn = Counter(row.caption_id for row in rounds)
        rows = per_image(p, looked, folder, pictures, drawn, alignments, answers, clip)
        metrics = {"n": len(rows)} | fidelity.numbers | means(rows)
        metrics |= {f"invalid_{role}": invalid_share(outcomes) for role, outcomes in answers.items()}
        metrics |= prompt_lengths(pictures) | flags(pictures)
        if distributed.is_main():
            write_rows(out / "per_image.jsonl", rows)
            write_rows(out / "rounds.jsonl", (round_row(row, alignments[row.image]) for row in rounds))
            curve = (FidRow(n=n, fid=fid.value, fid_std=fid.std) for n, fid in fidelity.by_n)
            write_rows(out / "fid_by_n.jsonl", curve)
            write_json(out / "card.json", protocol(p, len(rows)) | asking(p, asked, answers))
            workspace.publish(out, paths.evaluation(arm))
            write_json(paths.arm_metrics(arm), metrics)
    shown = (name for name in ("fid", "alignment", "judge_score", "held_out_score") if name in metrics)
    print(f"evaluate {arm}: done, {', '.join(f'{name} {metrics[name]:.4g}' for name in shown)}")


def roles_asked(p: params.Params) -> dict[str, str]:
    """Role -> the model that plays it. A stage-1 model of text alone has no role here: it enhances and no more."""
    asked = {"judge": p.finetune.judge, "held_out": p.evaluate.judge}
    if p.mllms[p.stage1.mllm].images:
        asked["validator"] = p.stage1.mllm
    if p.evaluate.questions:
        asked["questions"] = p.stage1.mllm
    if p.evaluate.vqa_score:
        asked["vqa"] = p.evaluate.vqa_mllm
    return asked


def in_order(pictures: list[PictureRow], captions: list[CaptionRow], folder: Path) -> list[PictureRow]:
    """The pictures in the captions' order. Raises UserError unless every caption has exactly one."""
    by_caption = {picture.caption_id: picture for picture in pictures}
    wanted = [caption.caption_id for caption in captions]
    if len(pictures) != len(wanted) or by_caption.keys() != set(wanted):
        raise UserError(
            f"{folder} has {len(pictures)} pictures, which do not match the {len(wanted)} captions of "
            f"{paths.EVALUATION_CAPTIONS}: run `dvc repro` to draw them again"
        )
    return [by_caption[caption_id] for caption_id in wanted]


def refuse_black(p: params.Params, drawn: list[PictureRow], folder: Path) -> None:
    """Raises UserError if the safety checker made pictures black.

    With them every measure would be of something else: a black picture is a perfectly dark and blurred one to a judge.
    Without them the arms would no longer have the same captions, nor the same n.
    """
    black = [row.image for row in drawn if row.flagged]
    if black and p.model.safety_checker == "on":
        raise UserError(
            f"{folder}: {len(black)} of {len(drawn)} pictures are black, since the safety checker flagged them "
            f"({black[0]} is the first), and cannot be measured. With model.safety_checker: report they are kept, and "
            "the flags are counted beside the metrics"
        )


def flags(pictures: list[PictureRow]) -> dict[str, int]:
    """How many pictures the safety checker flagged, where it was asked."""
    found = [row.flagged for row in pictures if row.flagged is not None]
    return {"flagged": sum(found)} if found else {}


def measure_fidelity(p: params.Params, looked: Looked, files: list[Path], kept: Path) -> "Fidelity":
    """FID and the like. Features, logits and the FIDs of resamples go to `kept`; if it is there, it saves the pass.

    Raises UserError when the real images' features are of other weights.
    """
    from safetensors.numpy import load_file, save_file

    from t2i_feedback.evaluation import extractors, fidelity

    reference = load_file(paths.REFERENCE / "features.safetensors")["features"]
    if kept.exists():
        tensors = load_file(kept)
    else:
        extractor = extractors.load(p.evaluate.extractor, p.model.device, p.evaluate.weights)
        if (theirs := reference_card()["weights"]) != extractor.weights:
            raise UserError(
                f"{paths.REFERENCE} was made with the weights {theirs}, and these are {extractor.weights}: "
                "run `dvc repro -s -f reference`"
            )
        size = p.evaluate.size or p.model.size
        found = extractors.extract(files, extractor, size, p.evaluate.resizer, looked.look)
        tensors = {"features": found.features}
        if found.logits is not None:
            tensors["logits"] = found.logits
    measured = fidelity.measure(tensors["features"], tensors.get("logits"), reference, p.evaluate, p.seed)
    if distributed.is_main():
        partial = kept.with_suffix(".partial")
        save_file(tensors | {"fid_resamples": measured.resamples}, partial)
        partial.replace(kept)
    return measured


def align(
    looked: Looked, captions: list[CaptionRow], rounds: list[PictureRow], folder: Path
) -> dict[str, "Alignment | None"]:
    """Image -> what the oracle sees of its caption's facts, for every picture drawn; None where there are no facts."""
    facts = {caption.caption_id: caption.facts for caption in captions if caption.facts is not None}
    alignments: dict[str, Alignment | None] = dict.fromkeys(row.image for row in rounds)
    known = [row for row in rounds if row.caption_id in facts]
    if not known:
        return alignments
    import numpy as np
    import torch

    from t2i_feedback.evaluation.alignment import Oracle, score

    oracle = Oracle.from_pretrained(paths.ORACLE)
    for chunk in chunks(known):
        opened = looked.open_all(folder / row.image for row in chunk)
        squares = [np.array(reading.square(image, ORACLE_SIDE, "crop_lanczos")) for image in opened]
        images = np.stack(squares).transpose(0, 3, 1, 2)
        for row, seen in zip(chunk, oracle.see(torch.from_numpy(images).float() / 255), strict=True):
            alignments[row.image] = score(facts[row.caption_id], seen)
    return alignments


def clip_scores(p: params.Params, looked: Looked, captions: list[CaptionRow], files: list[Path]) -> list[float] | None:
    """CLIPScore of every picture and its caption; None where nobody asks for it."""
    name, key = p.evaluate.clip_score, "evaluate.clip_score"
    if name is None:
        return None
    import torch

    from t2i_feedback.evaluation import clip, extractors
    from t2i_feedback.foundation import device

    model = clip.load(name, key)
    chosen = device.pick(p.model.device, "model.device", auto=extractors.AUTO)
    torch.nn.Module.to(model, chosen)  # transformers types its own `to` wrongly
    texts = [caption.caption for caption in captions]
    return clip.scores(model, name, key, reading.ahead(files, looked.open), texts)


def ask(
    p: params.Params, asked: dict[str, str], looked: Looked, captions: list[CaptionRow], files: list[Path]
) -> dict[str, Sequence["Typed"]]:
    """Role -> its answers about every picture, each model opened once. Raises UserError when too few are valid."""
    from t2i_feedback.mllm import roles, shared

    answers: dict[str, Sequence[Typed]] = {}
    for name in dict.fromkeys(asked.values()):
        with shared.open(name, p.mllms[name]) as model:
            for role in (role for role, chosen in asked.items() if chosen == name):
                found: list[Typed] = []
                for chunk in chunks(list(zip(files, captions, strict=True))):
                    images = looked.open_all(file for file, _ in chunk)
                    texts = [caption.caption for _, caption in chunk]
                    if role == "validator":
                        found += roles.validate(model, images, texts, questions=p.stage1.questions)
                    elif role == "questions":
                        found += roles.validate(model, images, texts, questions=True)
                    elif role == "vqa":
                        found += roles.vqa_score(model, images, texts)
                    else:
                        found += roles.score_preference(model, images, p.finetune.preference)
                roles.check_invalid(found, p.evaluate.max_invalid_fraction, f"{role.replace('_', '-')} {name}")
                answers[role] = found
    return answers


def per_image(
    p: params.Params,
    looked: Looked,
    folder: Path,
    pictures: list[PictureRow],
    drawn: Counter[int],
    alignments: dict[str, "Alignment | None"],
    answers: dict[str, Any],
    clip: list[float] | None,
) -> list[EvaluationRow]:
    """One row per caption. `accepted` is the loop's word; of an arm without one, P(yes) decides alike."""
    rows = []
    for i, picture in enumerate(pictures):
        alignment, accepted = alignments[picture.image], picture.accepted
        p_yes = answers["validator"][i].p_yes if "validator" in answers else None
        if picture.status is not None:
            p_yes = picture.p_yes  # the loop asked a masked verdict once more
        elif accepted is None and p_yes is not None:
            accepted = p_yes >= p.stage1.threshold
        row = EvaluationRow(
            caption_id=picture.caption_id,
            **looked.light(folder / picture.image),
            alignment=alignment.share if alignment else None,
            whole=alignment.whole if alignment else None,
            judge_score=answers["judge"][i].value,
            held_out_score=answers["held_out"][i].value,
            p_yes=p_yes,
            accepted=accepted,
            rounds=drawn[picture.caption_id],
            clip_score=clip[i] if clip else None,
            vqa_score=answers["vqa"][i].value if "vqa" in answers else None,
            question_alignment=answers["questions"][i].p_yes if "questions" in answers else None,
        )
        rows.append(row)
    return rows


def round_row(row: PictureRow, alignment: "Alignment | None") -> RoundRow:
    return RoundRow(
        caption_id=row.caption_id,
        round=row.round,
        alignment=alignment.share if alignment else None,
        whole=alignment.whole if alignment else None,
        p_yes=row.p_yes,
        accepted=row.accepted,
    )


def means(rows: list[EvaluationRow]) -> dict[str, float]:
    """Means over the captions where something was measured; a quantity that never was is left out."""
    names = {"accepted": "acceptance_rate", "rounds": "rounds_mean"}
    found = {}
    for column in EvaluationRow.model_fields:
        values = [value for row in rows if (value := getattr(row, column)) is not None]
        if values and column != "caption_id":
            found[names.get(column, column)] = statistics.fmean(values)
    return found | {"rounds_std": statistics.pstdev(row.rounds for row in rows)}


def prompt_lengths(pictures: list[PictureRow]) -> dict[str, float]:
    """Tokens per prompt that the image model never saw; nothing where nobody counted them."""
    lost = [picture.tokens_lost for picture in pictures if picture.tokens_lost is not None]
    return {"tokens_lost": statistics.fmean(lost)} if lost else {}


def invalid_share(outcomes: Sequence["Typed"]) -> float:
    return sum(outcome.status != "valid" for outcome in outcomes) / len(outcomes)


def protocol(p: params.Params, n: int) -> dict[str, object]:
    """The card: everything that the arm's numbers were made by. Arms measured alike have equal cards."""
    reference = reference_card()
    accepts = f"accepts from {'a share of items' if p.stage1.questions else 'P(yes)'} {p.stage1.threshold:g}"
    sees = "validator" in roles_asked(p)
    card = reference | {
        "protocol": p.evaluate.protocol,
        "n": n,
        "drawn_at": p.model.size,
        "image_format": "png",
        "model": p.model.name,
        "steps": p.model.steps,
        "guidance": p.model.guidance,
        "sampler": p.model.sampler,
        "negative_prompt": p.model.negative_prompt or "none",
        "safety_checker": p.model.safety_checker,
        "seed": p.seed,
        "fid_std": f"{p.evaluate.resamples} bootstrap resamples of the arm's features, the reference fixed",
        "is_std": f"over {p.evaluate.splits} splits" if reference["classes"] else "none: no classes, no score",
        "kid_std": f"over {p.evaluate.kid_subsets} subsets of {p.evaluate.kid_subset}",
        "neighbourhood": p.evaluate.neighbourhood,
        "rounds_std": "over captions",
        "brightness": "mean of the 0-255 Rec. 601 luma, averaged over pictures",
        "contrast": "standard deviation of the same luma, averaged over pictures",
        "sharpness": "1 - blur_effect of the same luma, averaged over pictures",
        "diversity": "mean cosine distance of features over all pairs of pictures",
        "preference": p.finetune.preference,
        "judge": p.finetune.judge,
        "held_out_judge": p.evaluate.judge,
        "validator": f"{p.stage1.mllm}, {accepts}" if sees else f"none: {p.stage1.mllm} reads text alone",
    }
    if p.evaluate.clip_score is not None:
        card["clip_score"] = f"2.5 max(cos, 0), {p.evaluate.clip_score}"
    if p.evaluate.vqa_score:
        card["vqa_score"] = f"P(yes), {p.evaluate.vqa_mllm}"
    if p.evaluate.questions:
        card["question_alignment"] = f"share of the caption's items with P(yes) of 0.5 or more, {p.stage1.mllm}"
    return card


def reference_card() -> dict[str, Any]:
    return json.loads((paths.REFERENCE / "card.json").read_text(encoding="utf-8"))


def asking(p: params.Params, asked: dict[str, str], answers: dict[str, Sequence["Typed"]]) -> dict[str, str]:
    """For the card: how answers were read, and the version of the templates that asked for them."""
    from t2i_feedback.mllm import roles, wording

    found = {f"{role}_reading": roles.readings_used(answers[role]) for role in asked}
    versions = sorted({wording.version(p.mllms[name].templates) for name in asked.values()})
    return found | {"templates": ", ".join(versions)}


def chunks(items: list) -> Iterator[list]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
