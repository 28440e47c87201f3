"""A published checkpoint under the parameters of a profile, for programs that reckon without weights."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from t2i_feedback import params
from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import ImageModel
from t2i_feedback.tools import profile
from t2i_feedback.tools.reckoning.counting import size
from t2i_feedback.tools.reckoning.networks import CHECKPOINTS, Checkpoint


@dataclass(frozen=True)
class Setup:
    """A checkpoint under a profile's parameters."""

    checkpoint: Checkpoint
    p: params.Params
    known: dict[Any, Any] = field(default_factory=dict)  # what was reckoned, also of setups that were made of this one

    @classmethod
    def of(cls, family: str) -> "Setup":
        """A published checkpoint under its profile."""
        found = CHECKPOINTS[family]
        return cls(found, profile.chosen(found.profile))

    def changed(self, section: str, **values: Any) -> "Setup":
        """With other values in a section of the parameters."""
        updated = getattr(self.p, section).model_copy(update=values)
        return replace(self, p=self.p.model_copy(update={section: updated}))

    def without(self, *parts: str) -> "Setup":
        return replace(self, checkpoint=self.checkpoint.without(*parts))

    @property
    def network(self) -> str:
        return self.checkpoint.family.networks

    @property
    def resting(self) -> list[str]:
        """What works once per batch, and rests in main memory with model.offload."""
        return [name for name in self.checkpoint.parts if name != self.network]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.checkpoint.channels, self.p.model.height // 8, self.p.model.width // 8

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each part's weights."""
        for name in self.checkpoint.parts:
            key = ("size", name, self.p.model.vae_dtype)
            if key not in self.known:
                self.known[key] = size(self.part(name))
        return {name: self.known["size", name, self.p.model.vae_dtype] for name in self.checkpoint.parts}

    def part(self, name: str) -> torch.nn.Module:
        """On the meta device."""
        model = self.p.model
        whole = name == "vae" and model.vae_dtype == "float32"
        return self.checkpoint.part(name, torch.float32 if whole else getattr(torch, model.dtype))

    def with_adapter(self) -> tuple[ImageModel, list[torch.nn.Parameter]]:
        """The network with a fresh adapter, on the meta device."""
        config, model = self.p.finetune, self.checkpoint.image_model(self.part(self.network), self.p.model)
        with torch.device("meta"):
            return model, model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, self.p.seed)

    def schedule(self, model: ImageModel) -> transitions.Schedule:
        """Of rollouts, all of whose steps have noise."""
        noise, steps = self.p.finetune.noise, self.p.finetune.steps_of(self.p.model.steps)
        return model.schedule(steps, model.noises[0] if noise.kind == "auto" else noise.kind, noise.level)
