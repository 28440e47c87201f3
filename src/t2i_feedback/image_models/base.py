"""An image model: a family's network under guidance, which encodes, predicts, decodes; and that as a policy.

Nothing outside this package knows more of a family than what stands here. A family is a file of `families/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.image_models import lora, transitions
from t2i_feedback.image_models.merging import Adapter
from t2i_feedback.image_models.section import Model, NoiseKind, Scheduler

ENCODED = 128  # texts at a time: a T5 takes 20 MB for each; the default run has 96 captions
Pipeline = Any  # a DiffusionPipeline; diffusers registers its parts at run time, which types cannot say


@dataclass(frozen=True)
class Conditioning:
    """What a family's network is told of N prompts: tensors [N, ...] by the names that its pipeline gives them."""

    tensors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: torch.Tensor) -> "Conditioning":
        """Of the prompts that `index` [B] names."""
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> "Conditioning":
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def expand(self, count: int) -> "Conditioning":
        """One prompt's, `count` times, without a copy."""
        return Conditioning(
            {name: tensor.expand(count, *[-1] * (tensor.ndim - 1)) for name, tensor in self.tensors.items()}
        )

    def before(self, others: "Conditioning") -> "Conditioning":
        """This, and `others` behind it."""
        return Conditioning({name: torch.cat([tensor, others.tensors[name]]) for name, tensor in self.tensors.items()})


class ImageModel(ABC):
    """A checkpoint of one family. What its file must say stands first."""

    pipeline: ClassVar[str]  # the class that a checkpoint's model_index.json names
    networks: ClassVar[str]  # the pipeline's part that denoises, and carries the adapter
    parts: ClassVar[tuple[str, ...]]  # that a checkpoint must have; other parts are left out
    optional: ClassVar[tuple[str, ...]] = ()  # parts that it may have
    tokenizers: ClassVar[tuple[str, ...]]  # the first that a checkpoint has reads the longest text
    safety_parts: ClassVar[tuple[str, ...]] = ()  # the safety checker, and what prepares images for it
    without: ClassVar[Mapping[str, Any]] = {}  # what loading is told in the place of parts that are left out
    schedulers: ClassVar[tuple[Scheduler, ...]]  # that `model.scheduler` may name; the first is `auto`
    rollouts: ClassVar[Scheduler]  # that of them whose steps can have noise, for fine-tuning
    noises: ClassVar[tuple[NoiseKind, ...]]  # that `finetune.noise.kind` may name; the first is `auto`
    lora_targets: ClassVar[tuple[str, ...]]  # `finetune.lora_targets: auto`
    takes_eta: ClassVar[bool] = False  # the pipeline's call has DDIM's eta
    classifier_free: ClassVar[bool] = True  # guidance leads away from a negative prompt

    @staticmethod
    @abstractmethod
    def scheduler(name: str, config: Any) -> Any:
        """The scheduler of that name, one of `schedulers`, with the noise schedule of the checkpoint's `config`."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """As the pipeline itself encodes them, all to one width."""

    @abstractmethod
    def denoise(self, x: torch.Tensor, timesteps: torch.Tensor, given: Conditioning) -> torch.Tensor:
        """The network's output for latents x [B, ...] at `timesteps` [B], without guidance."""

    @abstractmethod
    def schedule(
        self, steps: int, kind: NoiseKind, level: float, noisy: transitions.Steps | None = None
    ) -> transitions.Schedule:
        """Of a rollout with that much noise, in the steps `noisy`. Raises ValueError if such a step has none."""

    # The rest is the same for all families but where one of them says otherwise.

    def __init__(self, pipe: Pipeline, settings: Model):
        self.pipe, self.settings = pipe, settings

    @property
    def network(self) -> Any:
        return getattr(self.pipe, self.networks)

    @cached_property
    def device(self) -> torch.device:  # asked once: every time it is a walk over all modules
        return self.pipe.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the network's computations, and of the latents."""
        return self.network.dtype

    @cached_property
    def adapter(self) -> Adapter:
        """The network's adapter, once it has one."""
        return Adapter(self.network)

    def check_settings(self) -> None:
        """Raises UserError if the family has no use for a negative prompt that is set, or cannot draw that size:
        the latents are no whole number of patches, or too many."""
        if self.settings.negative_prompt and not self.classifier_free:
            raise UserError(
                f'model.negative_prompt: the guidance of a {self.pipeline} leads away from nothing; set it to ""'
            )
        config, factor = self.network.config, self.pipe.vae_scale_factor
        unit, most = factor * config.get("patch_size", 1), config.get("pos_embed_max_size")
        for name, side in (("width", self.settings.width), ("height", self.settings.height)):
            if side % unit:
                raise UserError(
                    f"model.size: a {name} of {side} is no multiple of {unit}, the side of a patch in pixels"
                )
            if most and side // unit > most:
                raise UserError(f"model.size: a {name} of {side} is beyond the {most * unit} that the model knows")

    def encode_many(self, prompts: Sequence[str]) -> Conditioning:
        """Of any number of prompts, in main memory: a T5 would need tens of GB for thousands of texts at once."""
        pieces = [
            self.encode(prompts[start : start + ENCODED]).to(torch.device("cpu"))
            for start in range(0, len(prompts), ENCODED)
        ]
        return Conditioning({name: torch.cat([piece.tensors[name] for piece in pieces]) for name in pieces[0].tensors})

    def null(self) -> Conditioning:
        """What guidance leads away from: the negative prompt, mostly the empty one."""
        return self.encode([self.settings.negative_prompt])

    def latent_shape(self) -> tuple[int, ...]:
        """Of one image's latents."""
        factor = self.pipe.vae_scale_factor
        return (self.network.config.in_channels, self.settings.height // factor, self.settings.width // factor)

    def fresh_noise(self, sources: Sequence[torch.Generator]) -> torch.Tensor:
        """Standard normal latents [B, ...], each from its own generator, whatever the batch."""
        shape = self.latent_shape()
        return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(self.device, self.dtype)

    def sharing(self, prompt_index: torch.Tensor) -> AbstractContextManager[object]:
        """Within it neighbours of a batch may share their text's work; `prompt_index` [B] is equal where texts are."""
        return nullcontext()

    def predict(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        given: Conditioning,
        null: Conditioning,
        guidance: float,
        prompt_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The network's output under classifier-free guidance, for latents x [B, ...] at `timesteps` [B].

        `null` is of one prompt; guidance 1 = none. `prompt_index` [B], on the CPU, is equal where prompts are equal.
        """
        if guidance == 1:
            with nullcontext() if prompt_index is None else self.sharing(prompt_index):
                return self.denoise(x, timesteps, given)
        both = null.expand(len(x)).before(given)  # the negative prompt's rows first
        index = None if prompt_index is None else torch.cat([torch.full_like(prompt_index, -1), prompt_index])
        with nullcontext() if index is None else self.sharing(index):
            output = self.denoise(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both)
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def call_arguments(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline's own call is told of the prompts and of guidance."""
        guidance = self.settings.guidance
        null = self.null().expand(len(prompts)).tensors if self.classifier_free and guidance > 1 else {}
        negative = {f"negative_{name}": tensor for name, tensor in null.items()}
        return {**self.encode(prompts).tensors, **negative, "guidance_scale": guidance}

    @torch.inference_mode()
    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One image per prompt from the noise that its seed gives, by the pipeline's own call.

        Raises UserError if a number is not finite.
        """
        model = self.settings
        latents = self.pipe(
            **self.call_arguments(prompts),
            **({"eta": model.eta} if self.takes_eta else {}),
            generator=generators(seeds),
            num_inference_steps=model.steps,
            height=model.height,
            width=model.width,
            output_type="latent",
        ).images
        return self.decode(latents)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """The images of latents [B, C, H, W], in the VAE's own precision.

        Raises UserError if a number is not finite: it would be saved as a black pixel.
        """
        if not latents.isfinite().all():
            raise UserError(
                f"model.dtype: the {self.networks}'s latents are not finite in {latents.dtype}; use bfloat16 or float32"
            )
        pixels = self.pipe.vae.decode(self.unscale(latents).to(self.pipe.vae.dtype), return_dict=False)[0]
        if not pixels.isfinite().all():
            raise UserError(f"model.vae_dtype: the VAE overflows in {pixels.dtype}; set it to float32")
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE made them: diffusion sees them scaled, and in some families shifted."""
        config = self.pipe.vae.config
        scaled = latents / config.scaling_factor
        return scaled if config.shift_factor is None else scaled + config.shift_factor

    def add_adapter(self, rank: int, alpha: int, targets: Sequence[str], seed: int) -> list[torch.nn.Parameter]:
        """Put a fresh LoRA adapter on the network; `targets` empty: the family's own. Returns its parameters."""
        return lora.add_adapter(self.network, rank, alpha, list(targets) or [*self.lora_targets], seed)

    def save_adapter(self, folder: Path) -> None:
        """As diffusers reads it, and as ComfyUI and A1111 do (`lora.save_adapter`)."""
        lora.save_adapter(self.network, folder, type(self.pipe), self.networks)

    def load_adapter(self, folder: Path) -> None:
        """The adapter that `save_adapter` wrote. Raises UserError if it was made for another model."""
        lora.load_adapter(self.pipe, folder, self.settings.name)

    @torch.no_grad()
    def flag(self, images: list[Image.Image]) -> list[bool]:
        """Which images the checkpoint's safety checker flags."""
        checker = self.pipe.safety_checker
        seen = self.pipe.feature_extractor(images, return_tensors="pt").pixel_values.to(self.device, checker.dtype)
        return checker(clip_input=seen, images=torch.zeros(len(images), 0))[1]  # it would blacken what it is given


def tokens_lost(tokenizer, prompts: Sequence[str]) -> list[int]:
    """How many tokens of each prompt lie beyond the text encoder's window."""
    window = tokenizer.model_max_length
    full = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    return [max(0, len(ids) - window) for ids in full]


@dataclass
class Policy:
    """An image model under classifier-free guidance as the policy of the denoising process."""

    model: ImageModel
    schedule: transitions.Schedule
    guidance: float  # 1 = none; the same in sampling and training, else the ratio is not 1
    null: Conditioning  # of one prompt, the negative one

    @classmethod
    def of(cls, model: ImageModel, schedule: transitions.Schedule) -> "Policy":
        """With the guidance and the negative prompt of the model's settings."""
        return cls(model, schedule, model.settings.guidance, model.null())

    def step(
        self, x_t: torch.Tensor, step: torch.Tensor, given: Conditioning, prompt_index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is made of the clean latents from x_t [B, ...] at step indices `step` [B], and the transition's mean.

        `prompt_index` [B], on the CPU, is equal where prompts are equal: the model may share their work.
        """
        timesteps = self.schedule.timesteps[step].to(x_t.device)
        output = self.model.predict(x_t, timesteps, given, self.null, self.guidance, prompt_index)
        step = step.to(x_t.device)
        clean, noise = transitions.clean_and_noise(self.schedule, step, output, x_t)
        return clean, transitions.transition_mean(self.schedule, step, clean, noise)

    def mean(
        self, x_t: torch.Tensor, step: torch.Tensor, given: Conditioning, prompt_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean of the transition alone (`step`)."""
        return self.step(x_t, step, given, prompt_index)[1]
