"""Single prompts, told round by round."""

from collections.abc import Sequence
from dataclasses import dataclass

from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.reporting.evidence import Evidence, MeasuredArm
from t2i_feedback.reporting.grids import data_url
from t2i_feedback.reporting.tables import number


@dataclass(frozen=True)
class Chapter:
    """One round of a story."""

    number: int
    prompt: str
    image: str  # data URL
    verdict: str
    outcome: str  # accepted, rejected, unjudged
    feedback: str
    alignment: str
    kept: bool


@dataclass(frozen=True)
class Story:
    title: str
    caption: str
    real: str  # data URL of the real image
    chapters: tuple[Chapter, ...]


def choose(rounds: dict[int, list[ImageRow]], count: int) -> list[tuple[str, int]]:
    """(title, caption_id) of instructive captions: each kind of ending in turn, long ways to acceptance first."""
    groups: dict[str, list[int]] = {}
    for caption_id, rows in sorted(rounds.items()):
        groups.setdefault(_ending(rows), []).append(caption_id)
    queues = {
        "Accepted in round {}": _different_lengths(groups.get("late", []), rounds),
        "Never accepted": groups.get("never", []),
        "Accepted at once": groups.get("once", [])[:1],
        "Left without a verdict": groups.get("unjudged", []),
    }
    chosen: list[tuple[str, int]] = []
    depth = 0
    while len(chosen) < count and any(len(queue) > depth for queue in queues.values()):
        for title, queue in queues.items():
            if len(queue) > depth and len(chosen) < count:
                chosen.append((title.format(len(rounds[queue[depth]])), queue[depth]))
        depth += 1
    return chosen


def _ending(rows: Sequence[ImageRow]) -> str:
    if rows[-1].accepted is None:
        return "unjudged"
    if not rows[-1].accepted:
        return "never"
    return "once" if len(rows) == 1 else "late"


def _different_lengths(ids: Sequence[int], rounds: dict[int, list[ImageRow]]) -> list[int]:
    """One story of each length first, so that not all are alike."""
    seen: dict[int, int] = {}
    order = []
    for caption_id in ids:
        length = len(rounds[caption_id])
        seen[length] = seen.get(length, 0) + 1
        order.append((seen[length], -length, caption_id))
    return [caption_id for *_, caption_id in sorted(order)]


def tell(evidence: Evidence, arm: MeasuredArm, count: int) -> list[Story]:
    """Stories of an arm with a loop; none if it has no rounds."""
    rounds: dict[int, list[ImageRow]] = {}
    for row in arm.rounds:
        if row.caption_id in evidence.captions:
            rounds.setdefault(row.caption_id, []).append(row)
    alignments = {
        (row.caption_id, row.round): number(row.alignment, 2)
        for row in arm.measured_rounds
        if row.alignment is not None
    }
    stories = []
    for title, caption_id in choose(rounds, count):
        caption = evidence.captions[caption_id]
        final = arm.images.get(caption_id)
        chapters = tuple(
            Chapter(
                number=row.round,
                prompt=row.prompt,
                image=data_url(arm.folder / row.image),
                verdict=f"P(yes) {number(row.p_yes, 2)}" if row.p_yes is not None else f"({row.status or 'not asked'})",
                outcome={True: "accepted", False: "rejected", None: "unjudged"}[row.accepted],
                feedback=row.feedback or "",
                alignment=alignments.get((row.caption_id, row.round), ""),
                kept=final is not None and final.image == row.image,
            )
            for row in rounds[caption_id]
        )
        stories.append(Story(title, caption.caption, data_url(evidence.dataset / caption.image), chapters))
    return stories
