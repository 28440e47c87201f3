"""The rows that stages hand to each other as JSON lines, and their atomic reading and writing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.traits import Trait

Status = Literal["valid", "refusal", "unparseable", "truncated", "transport"]
Reading = Literal["probability", "samples", "text"]  # how an answer was read; from the best to the last resort


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaptionRow(Row):
    """A caption and its real image."""

    caption_id: int
    image_id: int
    caption: str
    image: str  # relative to the data set's folder
    facts: dict | None = None  # what the caption states, where the data set says so; read by measurement only


class PromptRow(Row):
    """A prompt made from a caption. `status` says how the enhancer's answer fared; unless valid, prompt = caption."""

    caption_id: int
    round: int
    prompt: str
    status: Status
    tokens_lost: int = 0  # beyond the image model's token window


def as_typed(captions: Iterable[CaptionRow]) -> list[PromptRow]:
    """The captions themselves as prompts of round 1."""
    return [PromptRow(caption_id=row.caption_id, round=1, prompt=row.caption, status="valid") for row in captions]


class ImageRow(Row):
    """An image drawn for a caption, and what the validator said of it, if it was asked."""

    caption_id: int
    round: int  # from 1
    prompt: str
    image: str  # relative to the arm's folder
    tokens_lost: int | None = None  # of the prompt, beyond the image model's window; None = not counted
    status: Status | None = None  # of the verdict; None = nobody was asked
    p_yes: float | None = None  # the validator's P(yes) / (P(yes) + P(no)); None unless status is valid
    accepted: bool | None = None  # None = no verdict
    reading: Reading | None = None  # how the verdict was read
    feedback: str | None = None  # what the validator missed
    flagged: bool | None = None  # by the image model's safety checker; None = it was not asked


class EvaluationRow(Row):
    """What was measured of an arm's image of one caption; None = not measurable (masked, or no facts)."""

    caption_id: int
    brightness: float  # mean of the 0-255 Rec. 601 luma
    contrast: float  # its standard deviation
    sharpness: float  # 1 - blur_effect, 0..1
    alignment: float | None  # share of the caption's facts that the oracle sees, strict
    whole: bool | None  # every fact right and nothing uninvited
    judge_score: float | None  # the training judge, 1..10
    held_out_score: float | None  # the held-out judge, 1..10
    p_yes: float | None  # the validator's P(yes) of the arm's final image
    accepted: bool | None
    rounds: int
    clip_score: float | None = None  # 0..2.5; this and the two below only if params.yaml asks for them
    vqa_score: float | None = None  # P(yes), 0..1
    question_alignment: float | None = None  # share of the caption's items that the validator finds


class FidRow(Row):
    """FID of n of an arm's images: mean and standard deviation over random subsets; all images have no spread."""

    n: int
    fid: float
    fid_std: float


class RoundRow(Row):
    """What was measured of one image of an arm's rounds, kept or not; None = not measurable."""

    caption_id: int
    round: int
    alignment: float | None
    whole: bool | None
    p_yes: float | None  # the validator's, where the arm asked it
    accepted: bool | None


class CalibrationRow(Row):
    """A judge's score of one real image after one change (a step of a sweep)."""

    judge: str
    trait: Trait
    level: float  # the factor applied (blur: the Gaussian's sigma in pixels per 64 of width)
    caption_id: int
    score: float | None


class EpochRow(Row):
    """One epoch of fine-tuning."""

    epoch: int
    reward_mean: float
    reward_std: float
    held_out_mean: float | None
    asked: int  # images that the user was asked about; the reward's mean counts surrogate scores of others too
    masked: int  # of those, how many without a valid score
    dead_groups: float  # share of prompts whose rewards are all equal
    kl: float  # mean over timesteps of KL(policy || base), per latent dimension
    ratio_max: float  # largest |importance ratio - 1|
    clipped: float  # share of ratios outside the clip range
    grad_norm: float
    diversity: float  # mean distance between images of one prompt
    brightness: float
    contrast: float
    sharpness: float
    parts: dict[str, float] = {}  # reward -> mean raw value of the images asked about
    surrogate_error: float | None = None  # root mean square, on the answers before it learnt from them

    def numbers(self) -> dict[str, float]:
        """All that is known, flat, by name; a reward's raw value is `raw.NAME`."""
        known = self.model_dump(exclude={"epoch", "parts"}, exclude_none=True)
        return {name: float(value) for name, value in known.items()} | {f"raw.{k}": v for k, v in self.parts.items()}


RowType = TypeVar("RowType", bound=Row)


def read_rows(path: Path, row_type: type[RowType]) -> list[RowType]:
    """All rows of a JSON-lines file. Raises UserError that names the line when one is broken."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)  # splitlines() would also split at U+2028 and U+0085, which JSON leaves bare in strings
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro` to make it") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(row_type.model_validate_json(line))
        except ValidationError as error:
            raise UserError(f"{path}:{number} is not a {row_type.__name__}: {error.errors()[0]['msg']}") from None
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows or nothing."""
    files.write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))
