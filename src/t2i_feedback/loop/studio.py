"""What the stages of the validation loop share: models and files behind the loop's roles. Not a stage itself."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.foundation.rows import CaptionRow, PromptRow
from t2i_feedback.image_models.drawing import draw_missing, image_name
from t2i_feedback.image_models.stable_diffusion import load_pipeline
from t2i_feedback.loop.rounds import Roles
from t2i_feedback.mllm import enhancing, roles
from t2i_feedback.mllm.base import Mllm
from t2i_feedback.params import Params


class Studio:
    """Draws into one arm's folder and asks one MLLM, under the run's parameters. `first` are the prompts of round 1."""

    def __init__(self, params: Params, adapter: Path | None, folder: Path, mllm: Mllm, first: Sequence[PromptRow]):
        self.params, self.adapter, self.folder, self.mllm = params, adapter, folder, mllm
        self.verdicts: list[roles.Verdict] = []  # of the whole run; a masked one is here once it was asked again
        self.remarks: dict[str, str] = {}  # image -> what its verdict missed, where the verdict said it
        self.prompts = list(first)

    @cached_property
    def pipeline(self):
        return load_pipeline(self.params.model, self.adapter)

    def loop_roles(self) -> Roles:
        return Roles(self.draw, self.validate, self.explain, self.enhance)

    def draw(self, prompts: list[PromptRow]) -> list[str]:
        draw_missing(
            lambda: self.pipeline,
            prompts,
            self.folder,
            model=self.params.model,
            seed=self.params.seed,
            title=f"round {prompts[0].round}",
            adapter=self.adapter,
        )
        return [image_name(row.caption_id, row.round) for row in prompts]

    def validate(self, captions: Sequence[CaptionRow], images: list[str], attempt: int) -> Sequence[roles.Verdict]:
        verdicts = roles.validate(
            self.mllm,
            self._open(images),
            [row.caption for row in captions],
            sample=attempt,
            questions=self.params.stage1.questions,
        )
        self.remarks |= {image: v.feedback for image, v in zip(images, verdicts, strict=True) if v.feedback}
        self.verdicts += [verdict for verdict in verdicts if attempt or verdict.status == "valid"]
        if attempt:
            roles.check_invalid(self.verdicts, self.params.stage1.max_invalid_fraction, "verdicts")
        return verdicts

    def explain(self, captions: Sequence[CaptionRow], images: list[str]) -> list[str | None]:
        """What the verdicts said already; the validator is asked about the other pictures."""
        silent = [i for i, image in enumerate(images) if image not in self.remarks]
        pictures = self._open([images[i] for i in silent])
        answers = roles.explain(self.mllm, pictures, [captions[i].caption for i in silent])
        remarks = self.remarks | {images[i]: a.value for i, a in zip(silent, answers, strict=True) if a.value}
        return [remarks.get(image) for image in images]

    def enhance(self, captions: Sequence[CaptionRow], feedback: list[str | None], round: int) -> list[PromptRow]:
        limit = self.params.stage1.max_invalid_fraction
        rows = enhancing.enhance(self.mllm, captions, feedback, round, self.params.model, limit, self.prompts)
        self.prompts += rows
        return rows

    def _open(self, images: list[str]) -> list:
        return [open_rgb(self.folder / name) for name in images]
