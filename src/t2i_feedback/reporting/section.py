"""The section `report` of params.yaml, and the keys of other sections that the page tells of."""

from typing import Annotated

from pydantic import Field

from t2i_feedback.foundation.params import Count, Keys, Section, Seed, Size, key


class Report(Section):
    grid: Count
    stories: Annotated[int, Field(ge=0)]
    stamp: Annotated[str, Field(max_length=40)]


class Settings(Keys):
    """What a reader must know of the run's parameters. Whoever runs the report loads them."""

    seed: Seed
    report: Report
    data_set: str = key("data.source")
    model: str = key("model.name")
    size: Size = key("model.size")
    steps: int = key("model.steps")
    guidance: float = key("model.guidance")
    mllm: str = key("stage1.mllm")
    max_rounds: int = key("stage1.max_rounds")
    threshold: float = key("stage1.threshold")
    questions: bool = key("stage1.questions")
    extractor: str = key("evaluate.extractor")
    resamples: int = key("evaluate.resamples")
    held_out: str = key("evaluate.judge")
    judge: str = key("finetune.judge")
    preference: str = key("finetune.preference")
    objective: str = key("finetune.objective")
    max_held_out_drop: float | None = key("finetune.max_held_out_drop")
    epochs: int = key("finetune.epochs")
    prompts_per_epoch: int = key("finetune.prompts_per_epoch")
    images_per_prompt: int = key("finetune.images_per_prompt")
    acquisition: str = key("finetune.acquisition")
    surrogate_weight: float = key("finetune.surrogate_weight")

    @property
    def images_per_epoch(self) -> int:
        return self.prompts_per_epoch * self.images_per_prompt
