"""What a report is made from: the arms' numbers, rows and images, and the records of calibration and fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_feedback.arms import Arm
from t2i_feedback.foundation.rows import (
    CalibrationRow,
    CaptionRow,
    EpochRow,
    EvaluationRow,
    FidRow,
    ImageRow,
    RoundRow,
)
from t2i_feedback.reporting.preferred import Tally
from t2i_feedback.reporting.section import Settings


@dataclass(frozen=True)
class MeasuredArm:
    """An arm that was run: its images and what was measured of them."""

    arm: Arm
    folder: Path  # image names are relative to it
    metrics: Mapping[str, float]
    card: Mapping[str, object]
    measured: Mapping[int, EvaluationRow]  # by caption_id
    images: Mapping[int, ImageRow]  # by caption_id: the ones that the arm ends with
    rounds: Sequence[ImageRow] = ()  # every image drawn
    measured_rounds: Sequence[RoundRow] = ()
    fid_by_n: Sequence[FidRow] = ()

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def label(self) -> str:
        return self.arm.label


@dataclass(frozen=True)
class Evidence:
    """Everything at hand. An arm that was not run is absent; so are calibration and history when nobody made them.

    `arms` were measured alike. Those `apart` were not: their numbers stand in no table, plot or comparison with others.
    """

    settings: Settings
    dataset: Path  # real images are relative to it
    captions: Mapping[int, CaptionRow]
    arms: Mapping[str, MeasuredArm]  # by name
    calibration: Sequence[CalibrationRow] = ()
    calibration_metrics: Mapping[str, object] = field(default_factory=dict)
    validator_metrics: Mapping[str, float | None] = field(default_factory=dict)
    judge_plots: Mapping[str, Path] = field(default_factory=dict)  # what it shows -> PNG file
    validator_plots: Mapping[str, Path] = field(default_factory=dict)
    history: Sequence[EpochRow] = ()
    apart: Mapping[str, MeasuredArm] = field(default_factory=dict)
    left_out: int = 0  # images of the data set that could not be read
    preferred: Tally | None = None  # what a person preferred, before or after fine-tuning; None = nobody was asked
