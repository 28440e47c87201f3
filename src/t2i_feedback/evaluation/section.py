"""The section `evaluate` of params.yaml: what is measured of every arm, and how."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_feedback.foundation.params import CHECKPOINT, FREE, Count, EntryName, Section, Share

Resizer = Literal["crop_lanczos", "crop_bicubic", "squash_bicubic"]
Extractor = Literal["efficientnet-lite0", "inception-v3-compat", "clip"]


class Evaluate(Section):
    judge: EntryName
    protocol: Literal["own", "paper", "coco30k-256", "coco5k"]
    size: Annotated[int, Field(ge=8)] | None  # None = model.size, the shorter side
    resizer: Resizer
    extractor: Extractor
    weights: Annotated[Annotated[str, Field(min_length=1)] | None, CHECKPOINT]  # None = the extractor's own
    clip_score: Annotated[Annotated[str, Field(min_length=1)] | None, CHECKPOINT]  # None = not measured
    vqa_score: bool
    vqa_mllm: EntryName
    questions: bool
    resamples: Annotated[int, Field(ge=50)]
    splits: Count
    kid_subset: Annotated[int, Field(ge=2)]
    kid_subsets: Count
    neighbourhood: Count
    max_invalid_fraction: Annotated[Share, FREE]

    def card(self, classes: int, mllm: str) -> dict[str, object]:
        """Its lines of the protocol card, for an extractor of so many classes and the stage-1 model's name."""
        lines: dict[str, object] = {
            "protocol": self.protocol,
            "fid_std": f"{self.resamples} bootstrap resamples of the arm's features, the reference fixed",
            "is_std": f"over {self.splits} splits" if classes else "none: no classes, no score",
            "kid_std": f"over {self.kid_subsets} subsets of {self.kid_subset}",
            "neighbourhood": self.neighbourhood,
            "held_out_judge": self.judge,
        }
        if self.clip_score is not None:
            lines["clip_score"] = f"2.5 max(cos, 0), {self.clip_score}"
        if self.vqa_score:
            lines["vqa_score"] = f"P(yes), {self.vqa_mllm}"
        if self.questions:
            lines["question_alignment"] = f"share of the caption's items with P(yes) of 0.5 or more, {mllm}"
        return lines

    @model_validator(mode="after")
    def _weights_fit_the_extractor(self) -> "Evaluate":
        if self.extractor == "clip" and self.weights is None:
            raise ValueError("weights: the extractor clip needs a CLIP checkpoint, a folder or a hub id")
        if self.extractor == "efficientnet-lite0" and self.weights is not None:
            raise ValueError(f"weights: efficientnet-lite0 has its own and cannot take {self.weights}; set null")
        return self
