"""Drawing round after round into one arm's folder."""

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.rows import PromptRow
from t2i_feedback.image_models.base import Pipeline
from t2i_feedback.image_models.drawing import draw_missing, image_name
from t2i_feedback.image_models.section import Model
from t2i_feedback.image_models.stable_diffusion import load_pipeline


class RoundDrawer:
    """Draws prompts of a round. The image model is loaded when the first image is missing."""

    def __init__(self, model: Model, adapter: Path | None, folder: Path, seed: int):
        self.model, self.adapter, self.folder, self.seed = model, adapter, folder, seed
        (folder / "images").mkdir(parents=True, exist_ok=True)

    @cached_property
    def _pipeline(self) -> Pipeline:
        return load_pipeline(self.model, self.adapter)

    def copy_first(self, other: Path, caption_ids: Iterable[int]) -> None:
        """Take the images of round 1 from another arm's folder. The processes divide them; all are there at the end."""
        for caption_id in distributed.shard(list(caption_ids)):
            name = image_name(caption_id, 1)
            shutil.copyfile(other / name, self.folder / name)
        distributed.barrier()

    def draw(self, prompts: list[PromptRow]) -> list[str]:
        """The names of the prompts' images, relative to the folder; those that are missing are drawn."""
        draw_missing(
            lambda: self._pipeline,
            prompts,
            self.folder,
            model=self.model,
            seed=self.seed,
            title=f"round {prompts[0].round}",
            adapter=self.adapter,
        )
        return [image_name(row.caption_id, row.round) for row in prompts]
