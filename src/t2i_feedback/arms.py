"""The arms: different ways of making images for the same captions from the same noise, compared side by side.

What the report, the estimate and the paper's tables know of an arm stands here and nowhere else; dvc.yaml draws it, and
tests/unit/test_dvc.py holds the two together. A new arm is one more entry of ARMS, one in dvc.yaml's `generate` or
`validate`, and its name in the matrix of `evaluate`. Arms with rounds start from enhanced prompts; `best_of_n`, the one
choice, has a stage of its own.
"""

from dataclasses import dataclass
from typing import Literal

from t2i_feedback.foundation.errors import UserError

SHOWS_CAPTION = ("alignment", "whole", "clip_score", "vqa_score", "question_alignment")  # measures of stage 1


@dataclass(frozen=True)
class Arm:
    """One way of making the evaluation images, and where it stands in the report."""

    name: str
    label: str  # as the report writes it
    colour: str  # Okabe and Ito's
    prompts: Literal["captions", "enhanced"]
    adapter: bool  # drawn with the fine-tuned adapter
    # How an arm comes to its image of a caption. none: one is drawn. choice: of several drawn from the prompt of round
    # 1, the validator picks one. rounds: round after round until the validator accepts.
    loop: Literal["none", "choice", "rounds"] = "none"
    begins_as: str = ""  # the arm whose images are its images of round 1
    as_many_as: str = ""  # of a choice: the arm with rounds that it controls for, with equally many images per caption
    marker: str = "o"  # of its points, where arms with rounds share a plot
    compared_with: tuple[str, ...] = ()  # in stage 1: the arms that it is compared with in SHOWS_CAPTION
    preference: tuple[str, ...] = ()  # in stage 2: the measures in which it is compared with the base arm
    may_collapse: bool = False  # whether it must keep its share of the base arm's alignment and diversity
    row1: tuple[str, str] | None = None  # enhancer and validator in table 1; {mllm} is the stage-1 model
    row2: str | None = None  # model in table 2; {model} is the image model

    def __post_init__(self) -> None:
        if self.draws_several and self.prompts != "enhanced":
            raise ValueError(f"arm {self.name}: only enhanced prompts can be drawn several times")

    @property
    def draws_several(self) -> bool:
        return self.loop != "none"

    @property
    def has_rounds(self) -> bool:
        return self.loop == "rounds"

    def in_table1(self, mllm: str) -> tuple[str, str] | None:
        """Enhancer and validator, as the paper writes them."""
        return (self.row1[0].format(mllm=mllm), self.row1[1].format(mllm=mllm)) if self.row1 else None

    def in_table2(self, model: str) -> str | None:
        return self.row2.format(model=model) if self.row2 else None


ARMS: tuple[Arm, ...] = (
    Arm(
        name="raw",
        label="raw",
        colour="#666666",
        prompts="captions",
        adapter=False,
        row1=("None", "None"),
        row2="{model}",
    ),
    Arm(
        name="enhanced",
        label="enhanced",
        colour="#E69F00",
        prompts="enhanced",
        adapter=False,
        compared_with=("raw",),
        row1=("{mllm}", "None"),
    ),
    Arm(
        name="best_of_n",
        label="best of n",
        colour="#56B4E9",
        prompts="enhanced",
        adapter=False,
        loop="choice",
        begins_as="enhanced",
        as_many_as="validated",
        compared_with=("raw",),
        row1=("{mllm}", "{mllm} (best of n)"),
    ),
    Arm(
        name="validated",
        label="validated",
        colour="#0072B2",
        prompts="enhanced",
        adapter=False,
        loop="rounds",
        begins_as="enhanced",
        compared_with=("raw", "enhanced", "best_of_n"),
        row1=("{mllm}", "{mllm}"),
    ),
    Arm(
        name="finetuned",
        label="fine-tuned",
        colour="#D55E00",
        prompts="captions",
        adapter=True,
        preference=("judge_score", "held_out_score", "brightness", "contrast", "sharpness"),
        may_collapse=True,
        row2="{model}, fine-tuned",
    ),
    Arm(
        name="combined",
        label="combined",
        colour="#009E73",
        prompts="enhanced",
        adapter=True,
        loop="rounds",
        marker="s",
        compared_with=("raw",),
        preference=("held_out_score",),
        row1=("{mllm}", "{mllm} (+ adapter)"),
    ),
)
NAMES = tuple(arm.name for arm in ARMS)


def by_name(name: str) -> Arm:
    """Raises UserError that lists the arms when there is none of that name."""
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise UserError(f"which arm? one of {', '.join(arm.name for arm in ARMS)}, not {name!r}")


def base() -> Arm:
    """The arm that all others start from: the captions, the base model, one image of each."""
    return _plain(adapter=False)


def finetuned() -> Arm:
    """The arm that differs from the base by the adapter alone."""
    return _plain(adapter=True)


def _plain(adapter: bool) -> Arm:
    plain = (arm for arm in ARMS if arm.prompts == "captions" and not arm.draws_several)
    return next(arm for arm in plain if arm.adapter == adapter)


def drawing_several() -> list[Arm]:
    """The arms that end with one of several images of a caption."""
    return [arm for arm in ARMS if arm.draws_several]


def pairs() -> list[tuple[Arm, Arm]]:
    """(arm, what it is compared with) in stage 1: all against the base first."""
    return [(arm, other) for other in ARMS for arm in ARMS if other.name in arm.compared_with]


def controlled() -> list[tuple[Arm, Arm]]:
    """(arm with rounds, the arm that chooses among as many images): they differ in the validator's feedback alone."""
    return [(by_name(arm.as_many_as), arm) for arm in ARMS if arm.as_many_as]


def of_table1(enhancer: str, validator: str) -> Arm:
    """The arm that stands in the paper's row with these names."""
    return next(arm for arm in ARMS if arm.in_table1(enhancer) == (enhancer, validator))
