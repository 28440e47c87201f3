"""Drawing round after round into one arm's folder."""

from functools import cached_property
from pathlib import Path

from t2i_feedback.foundation.rows import ImageRow, PromptRow, read_rows
from t2i_feedback.image_models.base import ImageModel
from t2i_feedback.image_models.drawing import copy_images, draw_missing, image_name
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.image_models.section import Model


class RoundDrawer:
    """Draws prompts of a round. The image model is loaded when the first image is missing."""

    def __init__(self, model: Model, adapter: Path | None, folder: Path, seed: int):
        self.model, self.adapter, self.folder, self.seed = model, adapter, folder, seed
        (folder / "images").mkdir(parents=True, exist_ok=True)

    @cached_property
    def _image_model(self) -> ImageModel:
        return load_image_model(self.model, self.adapter)

    def copy_first(self, arm: Path) -> None:
        """Take another arm's images, one of each caption, as those of round 1."""
        copy_images(read_rows(arm / "images.jsonl", ImageRow), arm, self.folder)

    def draw(self, prompts: list[PromptRow]) -> list[str]:
        """The names of the prompts' images, relative to the folder; those that are missing are drawn."""
        draw_missing(
            lambda: self._image_model,
            prompts,
            self.folder,
            model=self.model,
            seed=self.seed,
            title=f"round {prompts[0].round}",
            adapter=self.adapter,
        )
        return [image_name(row.caption_id, row.round) for row in prompts]
