"""The section `finetune` of params.yaml: how an adapter learns, and whom from."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from t2i_feedback.finetuning import objectives
from t2i_feedback.foundation.params import FREE, Count, EntryName, Positive, Section, Share
from t2i_feedback.image_models.section import NoiseKind, check_level


def _none_for_auto(value: object) -> object:
    if value == []:
        raise ValueError("no layer is named; auto takes the family's own")
    return [] if value == "auto" else value


class Noise(Section):
    """Of the steps of rollouts: a policy without noise has no log-probability."""

    kind: Literal["auto", NoiseKind]  # auto: the family's own
    level: Annotated[float, Field(gt=0, le=2)]
    window: Count | None

    @model_validator(mode="after")
    def _there_is_such_noise(self) -> "Noise":
        if self.kind != "auto":
            check_level(self.kind, self.level)
        return self


class Finetune(Section):
    judge: EntryName
    preference: Annotated[str, Field(min_length=3)]
    user: Literal["mllm", "pixels", "file"]
    reward: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    acquisition: Literal["all", "random", "uncertainty"]
    feedback_budget: Count | None
    surrogate_weight: Share
    enhance_prompts: bool
    require_calibrated: Annotated[bool, FREE]
    epochs: Count
    prompts_per_epoch: Count
    images_per_prompt: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2, le=1000)] | None
    guidance: Annotated[float, Field(ge=1)] | None
    noise: Noise
    objective: str  # the name of a file of objectives/
    inner_epochs: Count
    updates_per_epoch: Count
    timestep_share: Annotated[float, Field(gt=0, le=1)]
    min_sigma: Annotated[float, Field(ge=0)]
    train_batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive
    ema: Annotated[float, Field(ge=0, lt=1)]
    clip_range: Positive
    advantage: Literal["per_prompt", "per_batch"]
    advantage_clip: Positive
    kl_weight: Annotated[float, Field(ge=0)]
    max_kl: Positive | None
    max_held_out_drop: Positive | None
    overlap_judging: Annotated[bool, FREE]
    lora_rank: Count
    lora_alpha: Count
    lora_targets: Annotated[list[str], BeforeValidator(_none_for_auto)]  # empty: the family's own
    optimiser: Literal["adamw", "adamw8bit"]
    gradient_checkpointing: bool
    keep_last: Annotated[Count, FREE]
    max_invalid_fraction: Annotated[Share, FREE]

    @property
    def images_per_epoch(self) -> int:
        return self.prompts_per_epoch * self.images_per_prompt

    def guidance_of(self, model_guidance: float) -> float:
        """Of rollouts and updates, where the arms draw with `model_guidance`."""
        return self.guidance or model_guidance

    def steps_of(self, model_steps: int) -> int:
        """Denoising steps of a rollout, where the arms take `model_steps`."""
        return self.steps or model_steps

    @property
    def answers_per_epoch(self) -> int:
        """How many images of an epoch each reward is asked for."""
        return self.feedback_budget or self.images_per_epoch

    def plan(self, weights: Mapping[str, float]) -> str:
        """What a run will do, in a line: how much is drawn, what is rewarded, who is asked about what.

        `weights` are those of the rewards that count, in the order of their sum.
        """
        asked = "all of them" if self.acquisition == "all" else f"{self.feedback_budget} by {self.acquisition}"
        wanted = " + ".join(f"{weight:g} x {name}" for name, weight in weights.items())
        whom = {"mllm": self.judge, "pixels": "photometry", "file": "a person"}[self.user]
        return (
            f"{self.epochs} epochs of {self.images_per_epoch} images, {asked} rewarded by {wanted}; the preference "
            f"is {whom}'s: “{self.preference}”"
        )

    @field_validator("objective")
    @classmethod
    def _objective_is_a_file(cls, name: str) -> str:
        if name not in objectives.names():
            raise ValueError(f"no objective is called {name!r}; there are {', '.join(objectives.names())}")
        return name

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> "Finetune":
        if not any(self.reward.values()):
            raise ValueError("reward: every weight is 0, so nothing is rewarded; give at least one name a weight")
        return self

    @model_validator(mode="after")
    def _budget_goes_with_acquisition(self) -> "Finetune":
        images, budget = self.images_per_epoch, self.feedback_budget
        if budget is not None and budget > images:
            raise ValueError(f"feedback_budget {budget} is more than the {images} images of an epoch")
        if self.acquisition == "all":
            if budget not in (None, images):
                raise ValueError(
                    f"feedback_budget {budget} is less than the {images} images of an epoch: choose acquisition "
                    "random or uncertainty, or feedback_budget null"
                )
            return self
        if budget is None:
            raise ValueError(
                f"acquisition {self.acquisition} needs a feedback_budget: how many of the {images} images of an "
                "epoch the user is asked about"
            )
        if self.advantage == "per_prompt" and not self.surrogate_weight and budget < 2 * self.prompts_per_epoch:
            raise ValueError(
                f"feedback_budget {budget} leaves prompts with one answer, which cannot be compared: with "
                f"surrogate_weight 0 ask at least 2 x prompts_per_epoch = {2 * self.prompts_per_epoch}, or choose "
                "advantage per_batch"
            )
        return self

    @model_validator(mode="after")
    def _overlap_is_possible(self) -> "Finetune":
        if self.overlap_judging and (self.acquisition != "all" or self.user == "file"):
            raise ValueError(
                "overlap_judging needs acquisition all and user mllm or pixels: which images to ask about is settled "
                "when all are drawn"
            )
        return self

    @field_validator("preference")
    @classmethod
    def _preference_says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("preference must not be blank")
        return text

    @model_validator(mode="after")
    def _batches_divide(self) -> "Finetune":
        if self.images_per_epoch % self.updates_per_epoch:
            total, wanted = self.images_per_epoch, self.updates_per_epoch
            divisors = [count for count in range(1, total + 1) if total % count == 0]
            nearest = sorted(divisors, key=lambda count: abs(count - wanted))[:2]
            raise ValueError(
                f"updates_per_epoch {wanted} must divide prompts_per_epoch * images_per_prompt = {total}; the nearest "
                f"that do are {' and '.join(map(str, sorted(nearest)))}"
            )
        return self
