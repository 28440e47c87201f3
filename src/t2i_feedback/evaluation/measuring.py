"""What is measured of an arm's images: one by one, together, and of every image that its rounds drew.

Image files are decoded once, as far as memory allows (decoding.py). What was not measured is None, and stands in no
mean.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from t2i_feedback.evaluation import decoding
from t2i_feedback.evaluation.protocol import reference_card
from t2i_feedback.evaluation.section import Evaluate
from t2i_feedback.foundation import device as devices
from t2i_feedback.foundation import distributed, photometry
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import whole
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow, EvaluationRow, ImageRow, RoundRow

if TYPE_CHECKING:
    from t2i_feedback.evaluation.alignment import Alignment
    from t2i_feedback.evaluation.fidelity import Fidelity

CHUNK = 512  # images that the oracle looks at together
ORACLE_SIDE = 64  # pixels


class MeasuredFiles(decoding.ImageFiles):
    """Image files whose brightness, contrast and sharpness are measured while they are decoded for something else."""

    def __init__(self) -> None:
        super().__init__(open_rgb, decoding.KEPT_BYTES // distributed.world_size())
        self._photometry: dict[Path, dict[str, float]] = {}

    def open_and_measure(self, file: Path) -> Image.Image:
        image = self.open(file)
        if file not in self._photometry:
            self._photometry[file] = photometry.measure(image)
        return image

    def photometry(self, file: Path) -> dict[str, float]:
        """Brightness, contrast and sharpness."""
        if file not in self._photometry:
            self.open_and_measure(file)
        return self._photometry[file]


# ------------------------------------------------------------------------------------------------ before


def in_order(images: Sequence[ImageRow], captions: Sequence[CaptionRow], folder: Path) -> list[ImageRow]:
    """The images in the captions' order. Raises UserError unless every caption has exactly one."""
    by_caption = {row.caption_id: row for row in images}
    wanted = [caption.caption_id for caption in captions]
    if len(images) != len(wanted) or by_caption.keys() != set(wanted):
        raise UserError(
            f"{folder} has {len(images)} images, which do not match the {len(wanted)} captions to evaluate on: "
            "run `dvc repro` to draw them again"
        )
    return [by_caption[caption_id] for caption_id in wanted]


def refuse_black(drawn: Sequence[ImageRow], folder: Path) -> None:
    """Raises UserError if the safety checker made images black.

    With them every measure would be of something else: a black image is a perfectly dark and blurred one to a judge.
    Without them the arms would no longer have the same captions, nor the same n.
    """
    black = [row.image for row in drawn if row.flagged]
    if black:
        raise UserError(
            f"{folder}: {len(black)} of {len(drawn)} images are black, since the safety checker flagged them "
            f"({black[0]} is the first), and cannot be measured. With model.safety_checker: report they are kept, and "
            "the flags are counted beside the metrics"
        )


# ------------------------------------------------------------------------------------------------ networks


def fidelity_of(
    images: MeasuredFiles,
    files: Sequence[Path],
    evaluate: Evaluate,
    *,
    size: int,
    device: str,
    seed: int,
    reference: Path,
    kept: Path,
) -> "Fidelity":
    """FID and the like, of features at size x size pixels. `reference` holds the real images' features.

    Features, logits and the FIDs of resamples go to `kept`; if it is there, it saves the pass over the images. Raises
    UserError when the reference was made with other weights.
    """
    from safetensors.numpy import load_file, save_file

    from t2i_feedback.evaluation import extractors, fidelity

    real = load_file(reference / "features.safetensors")["features"]
    if kept.exists():
        tensors = load_file(kept)
    else:
        extractor = extractors.load(evaluate.extractor, device, evaluate.weights)
        if (theirs := reference_card(reference)["weights"]) != extractor.weights:
            raise UserError(
                f"{reference} was made with the weights {theirs}, and these are {extractor.weights}: "
                "run `dvc repro -s -f reference`"
            )
        found = extractors.extract(files, extractor, size, evaluate.resizer, images.open_and_measure)
        tensors = {"features": found.features}
        if found.logits is not None:
            tensors["logits"] = found.logits
    measured = fidelity.measure(tensors["features"], tensors.get("logits"), real, evaluate, seed)
    if distributed.is_main():
        with whole(kept) as partial:
            save_file(tensors | {"fid_resamples": measured.resamples}, partial)
    return measured


def align(
    oracle_folder: Path,
    images: decoding.ImageFiles,
    captions: Sequence[CaptionRow],
    drawn: Sequence[ImageRow],
    folder: Path,
) -> dict[str, "Alignment | None"]:
    """Image -> what the oracle sees of its caption's facts, for every image drawn; None where there are no facts."""
    facts = {caption.caption_id: caption.facts for caption in captions if caption.facts is not None}
    alignments: dict[str, Alignment | None] = dict.fromkeys(row.image for row in drawn)
    known = [row for row in drawn if row.caption_id in facts]
    if not known:
        return alignments
    import numpy as np
    import torch

    from t2i_feedback.evaluation.alignment import Oracle, score

    oracle = Oracle.from_pretrained(oracle_folder)
    for chunk in _chunks(known):
        opened = images.open_all(folder / row.image for row in chunk)
        squares = [np.array(decoding.square(image, ORACLE_SIDE, "crop_lanczos")) for image in opened]
        stacked = np.stack(squares).transpose(0, 3, 1, 2)
        for row, seen in zip(chunk, oracle.see(torch.from_numpy(stacked).float() / 255), strict=True):
            alignments[row.image] = score(facts[row.caption_id], seen)
    return alignments


def _chunks(rows: Sequence[ImageRow]) -> Iterator[Sequence[ImageRow]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def clip_scores(
    checkpoint: str | None,
    device: str,
    images: decoding.ImageFiles,
    captions: Sequence[CaptionRow],
    files: Sequence[Path],
) -> list[float] | None:
    """CLIPScore of every image and its caption; None where nobody asks for it."""
    if checkpoint is None:
        return None
    import torch

    from t2i_feedback.evaluation import clip

    key = "evaluate.clip_score"
    model = clip.load(checkpoint, key)
    place = devices.pick(device, "model.device")
    torch.nn.Module.to(model, place)  # transformers types its own `to` wrongly
    texts = [caption.caption for caption in captions]
    return clip.scores(model, checkpoint, key, decoding.ahead(files, images.open), texts)


# ------------------------------------------------------------------------------------------------ rows and means


def per_image(
    images: MeasuredFiles,
    folder: Path,
    kept: Sequence[ImageRow],
    drawn: Counter[int],
    alignments: Mapping[str, "Alignment | None"],
    answers: Mapping[str, Sequence[Any]],
    clip: Sequence[float] | None,
    threshold: float,
) -> list[EvaluationRow]:
    """One row per caption. `answers` are each role's about all images; `drawn` says how many a caption has.

    `accepted` is the loop's word; of an arm without one, P(yes) from `threshold` on decides alike.
    """
    rows = []
    for i, one in enumerate(kept):
        alignment, accepted = alignments[one.image], one.accepted
        p_yes = answers["validator"][i].p_yes if "validator" in answers else None
        if one.status is not None:
            p_yes = one.p_yes  # the loop asked a masked verdict once more
        elif accepted is None and p_yes is not None:
            accepted = p_yes >= threshold
        row = EvaluationRow(
            caption_id=one.caption_id,
            **images.photometry(folder / one.image),
            alignment=alignment.share if alignment else None,
            whole=alignment.whole if alignment else None,
            judge_score=answers["judge"][i].value,
            held_out_score=answers["held_out"][i].value,
            p_yes=p_yes,
            accepted=accepted,
            rounds=drawn[one.caption_id],
            clip_score=clip[i] if clip else None,
            vqa_score=answers["vqa"][i].value if "vqa" in answers else None,
            question_alignment=answers["questions"][i].p_yes if "questions" in answers else None,
        )
        rows.append(row)
    return rows


def round_row(row: ImageRow, alignment: "Alignment | None") -> RoundRow:
    return RoundRow(
        caption_id=row.caption_id,
        round=row.round,
        alignment=alignment.share if alignment else None,
        whole=alignment.whole if alignment else None,
        p_yes=row.p_yes,
        accepted=row.accepted,
    )


def means(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Means over the captions where something was measured; a quantity that never was is left out."""
    names = {"accepted": "acceptance_rate", "rounds": "rounds_mean"}
    found = {}
    for column in EvaluationRow.model_fields:
        values = [value for row in rows if (value := getattr(row, column)) is not None]
        if values and column != "caption_id":
            found[names.get(column, column)] = statistics.fmean(values)
    return found | {"rounds_std": statistics.pstdev(row.rounds for row in rows)}


def prompt_lengths(images: Sequence[ImageRow]) -> dict[str, float]:
    """Tokens per prompt that the image model never saw; nothing where nobody counted them."""
    lost = [row.tokens_lost for row in images if row.tokens_lost is not None]
    return {"tokens_lost": statistics.fmean(lost)} if lost else {}


def flags(images: Sequence[ImageRow]) -> dict[str, int]:
    """How many images the safety checker flagged, where it was asked."""
    found = [row.flagged for row in images if row.flagged is not None]
    return {"flagged": sum(found)} if found else {}
