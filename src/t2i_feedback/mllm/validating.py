"""A validator at work in a run: it looks at images of a folder, and the run stops when too few answers are valid."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm


class Validator:
    """Accepts or rejects images of `folder`, or says what they miss. `questions`: it is asked about each item."""

    def __init__(self, mllm: Mllm, folder: Path, *, questions: bool, max_invalid_fraction: float):
        self.mllm, self.folder, self.questions = mllm, folder, questions
        self.max_invalid_fraction = max_invalid_fraction
        self.verdicts: list[roles.Verdict] = []  # of the run; one that is not valid is here once it was asked again

    def validate(self, captions: Sequence[CaptionRow], images: list[str], attempt: int) -> list[roles.Verdict]:
        """Verdicts on images, by name in the folder. `attempt`: 0, or 1 when they are asked again.

        Raises UserError when too many of the run's verdicts are not valid although they were asked again.
        """
        verdicts = roles.validate(
            self.mllm,
            self._images(images),
            [row.caption for row in captions],
            sample=attempt,
            questions=self.questions,
        )
        self.verdicts += [verdict for verdict in verdicts if attempt or verdict.status == "valid"]
        if attempt:
            roles.check_invalid(self.verdicts, self.max_invalid_fraction, "verdicts")
        return verdicts

    def explain(self, captions: Sequence[CaptionRow], images: list[str]) -> list[str | None]:
        """What each image misses of its caption; None where there is no valid answer."""
        answers = roles.explain(self.mllm, self._images(images), [row.caption for row in captions])
        return [answer.value or None for answer in answers]

    def _images(self, names: list[str]) -> list[Image.Image]:
        return [open_rgb(self.folder / name) for name in names]
