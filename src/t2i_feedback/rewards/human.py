"""A person as the user: scores of a score sheet, typed, given on a page or made from comparisons there.

A run ends where one is missing; nobody waits.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards.base import Reward
from t2i_feedback.rewards.sheet import Sheet

if TYPE_CHECKING:
    from PIL.Image import Image

AWAITED = "awaited.txt"  # in a run's folder: the names of the images whose scores were missing when it ended


def sheet_of(preference: str, folder: Path) -> Sheet:
    """The score sheet of a preference, below `folder`: runs with one preference share what the person said."""
    words = "-".join(re.findall(r"\w+", preference.lower())[:5])[:40]
    return Sheet(folder / f"{words}-{hashlib.sha256(preference.encode()).hexdigest()[:8]}", preference)


def person(sheet: Sheet, folder: Path) -> Reward:
    """The scores that the sheet has of a person. Raises UserError while some are missing.

    Every process is to ask about the same images; the first one writes.
    """

    def reward(images: "list[Image]", prompts: list[str]) -> list[float | None]:
        if distributed.is_main():
            names = sheet.enter(images, prompts)
            (folder / AWAITED).write_text("\n".join(names))
            sheet.ask(names)
        distributed.barrier()  # the others read when it is written
        names = sheet.enter(images, prompts)
        _stop_for(sheet, sheet.unscored(names))
        lines = sheet.read()
        return [lines[name].score for name in names]

    return reward


def check_answered(sheet: Sheet, folder: Path) -> None:
    """Raises UserError while images that the run ended for have no score. It costs no drawing to find out.

    Rows that the sheet has lost are no reason to stop: the run enters them again.
    """
    awaited = folder / AWAITED
    names = awaited.read_text().split() if awaited.exists() else []
    if sheet.read().keys() >= set(names):
        _stop_for(sheet, sheet.unscored(names))


def _stop_for(sheet: Sheet, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"{len(missing)} images await scores in {sheet.path} (shown in {sheet.page.name} beside it); run again "
            "when done"
        )
