"""The images that the page shows: one row of all arms per caption, single captions round by round, pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from t2i_feedback import arms
from t2i_feedback.reporting import grids, stories
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.tables import number


@dataclass(frozen=True)
class GridRow:
    caption: str
    real: str  # data URL
    images: tuple[str, ...]  # data URLs, in the order of the arms
    notes: tuple[str, ...]


def image_grid(evidence: Evidence, shown: Sequence[MeasuredArm], caption_ids: Sequence[int]) -> list[GridRow]:
    rows = []
    for caption_id in caption_ids:
        caption = evidence.captions[caption_id]
        rows.append(
            GridRow(
                caption.caption,
                grids.data_url(evidence.dataset / caption.image),
                tuple(grids.data_url(arm.folder / arm.images[caption_id].image) for arm in shown),
                tuple(_note(arm, caption_id) for arm in shown),
            )
        )
    return rows


def _note(arm: MeasuredArm, caption_id: int) -> str:
    """A line under an image: its alignment if measured."""
    row = arm.measured.get(caption_id)
    return "" if row is None or row.alignment is None else f"alignment {row.alignment:.2f}"


def told_arm() -> arms.Arm:
    """The arm whose rounds are told: the first that has any."""
    return next(arm for arm in arms.ARMS if arm.has_rounds)


def told(evidence: Evidence) -> list[stories.Story]:
    arm = evidence.arms.get(told_arm().name)
    return stories.tell(evidence, arm, evidence.settings.report.stories) if arm else []


def pairs(evidence: Evidence) -> list[GridRow]:
    """Base and fine-tuned images of other captions than the grid's, from equal noise."""
    both = (arms.base().name, arms.finetuned().name)
    if any(name not in evidence.arms for name in both):
        return []
    compared = [evidence.arms[name] for name in both]
    count = evidence.settings.report.grid
    shared = grids.shared_captions(evidence)
    shown = set(grids.spread_out(shared, count))
    others = [caption_id for caption_id in shared if caption_id not in shown] or shared
    rows = image_grid(evidence, compared, grids.spread_out(others, count))
    scores = [
        tuple(number(row.held_out_score if row else None, 1) for row in (arm.measured.get(i) for arm in compared))
        for i in grids.spread_out(others, count)
    ]
    return [GridRow(row.caption, row.real, row.images, note) for row, note in zip(rows, scores, strict=True)]
