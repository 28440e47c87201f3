"""Draw an epoch's images with the present policy, and keep every step of the drawing for the update."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.seeds import generator, generators
from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import Conditioning, Policy


@dataclass
class Trajectories:
    """The drawing of P images, step by step; all tensors are on the CPU."""

    latents: torch.Tensor  # [P, steps + 1, ...]; [:, 0] is pure noise, [:, -1] is decoded
    log_probs: torch.Tensor  # [P, steps] of latents[:, i + 1] given latents[:, i]; 0 where a step has no noise
    prompt_index: torch.Tensor  # [P] into the embeddings
    images: list[Image.Image]
    means: torch.Tensor | None = None  # [P, steps, ...] of latents[:, i + 1] given latents[:, i], where they are kept

    def before(self, schedule: transitions.Schedule, image: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The noisy latents [B, ...] of these images before these steps."""
        return self.latents[image, step]

    def final(self, image: torch.Tensor) -> torch.Tensor:
        """The clean latents [B, ...] of these images."""
        return self.latents[image, -1]


@dataclass
class Finals:
    """What P images ended as, of which nothing else was kept; all tensors are on the CPU."""

    latents: torch.Tensor  # [P, ...] that were decoded
    seeds: list[int]  # of the noise that they get again
    prompt_index: torch.Tensor  # [P] into the embeddings
    images: list[Image.Image]

    def before(self, schedule: transitions.Schedule, image: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Noisy latents [B, ...] of these images, as noisy as before these steps."""
        clean = self.final(image)
        labelled = zip(image.tolist(), step.tolist(), strict=True)
        sources = [generator(self.seeds[one], "step", number) for one, number in labelled]
        noise = torch.stack([torch.randn(clean.shape[1:], generator=source) for source in sources])
        shape = (-1, *[1] * (clean.ndim - 1))
        mixed = schedule.signal[step].view(shape) * clean.float() + schedule.noise[step].view(shape) * noise
        return mixed.to(clean.dtype)

    def final(self, image: torch.Tensor) -> torch.Tensor:
        """The clean latents [B, ...] of these images."""
        return self.latents[image]


Drawn = Trajectories | Finals


def joined(parts: Sequence[Drawn]) -> Drawn:
    """One after the other; all of one kind."""

    def one(values: list) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        return None if values[0] is None else [item for value in values for item in value]

    kind, names = type(parts[0]), [field.name for field in fields(parts[0])]
    return kind(**{name: one([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Rollout:
    """An epoch's N images, of which this process drew some."""

    indices: list[int]  # the images, 0 to N - 1, that this process drew
    drawn: Drawn  # of these, in this order
    images: list[Image.Image]  # all N
    prompts: list[str]  # all N


def choose_prompts(count: int, prompts: int, images: int, generator: torch.Generator) -> torch.Tensor:
    """Which of `count` prompts an epoch's images have: `prompts` different ones, each `images` times in succession.

    Indices [prompts * images].
    """
    return torch.randperm(count, generator=generator)[:prompts].repeat_interleave(images)


def chunks(images: int, updates: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The epoch's images, 0 to `images` - 1, in a random order, cut into a chunk for each optimiser step."""
    return torch.randperm(images, generator=generator).chunk(updates)


def local_indices(chunks: Sequence[torch.Tensor]) -> list[int]:
    """The images that this process draws and trains on: its equal part of every chunk, in increasing order."""
    return sorted(index for chunk in chunks for index in distributed.shard(chunk.tolist()))


def gather_images(indices: Sequence[int], images: Sequence[Image.Image], total: int) -> list[Image.Image]:
    """All `total` images of an epoch in their order, from those with these indices that each process drew."""
    if distributed.world_size() == 1:
        return [image for _, image in sorted(zip(indices, images, strict=True), key=lambda pair: pair[0])]
    drawn = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    pixels = torch.zeros((total, *drawn.shape[1:]), dtype=torch.uint8)
    pixels[list(indices)] = drawn
    return [Image.fromarray(one) for one in distributed.all_reduce(pixels).numpy()]


@torch.no_grad()
def roll_out(
    policy: Policy, given: Conditioning, prompt_index: torch.Tensor, seeds: Sequence[int], keep_means: bool = False
) -> Trajectories:
    """Draw one batch, an image for each entry of `prompt_index` [B], which points into `given`, and its seed."""
    schedule, latents, log_probs, means = policy.schedule, [], [], []
    for index, (mean, x) in enumerate(_denoise(policy, given, prompt_index, seeds)):
        latents.append(x)
        if mean is None:
            continue
        step = torch.full((len(x),), index - 1)
        noisy = schedule.sigma[index - 1] > 0
        log_probs.append(transitions.log_prob(schedule, step, mean, x) if noisy else torch.zeros(len(x)).to(x.device))
        if keep_means:
            means.append(mean.cpu())
    stacked = torch.stack(means, 1) if means else None
    return Trajectories(
        torch.stack(latents, 1).cpu(), torch.stack(log_probs, 1).cpu(), prompt_index, policy.model.decode(x), stacked
    )


@torch.no_grad()
def draw_finals(policy: Policy, given: Conditioning, prompt_index: torch.Tensor, seeds: Sequence[int]) -> Finals:
    """The same, of which nothing is kept but the end. An image's seed is that of its later noise as well."""
    *_, (_, x) = _denoise(policy, given, prompt_index, seeds)
    return Finals(x.cpu(), list(seeds), prompt_index, policy.model.decode(x))


def _denoise(
    policy: Policy, given: Conditioning, prompt_index: torch.Tensor, seeds: Sequence[int]
) -> Iterator[tuple[torch.Tensor | None, torch.Tensor]]:
    """Pure noise, and then for every step its mean and the latents as they are stored, which are drawn around it."""
    sources, model, schedule = generators(seeds), policy.model, policy.schedule
    chosen = given[prompt_index].to(model.device)
    x = model.fresh_noise(sources)
    yield None, x
    for index in range(len(schedule)):
        mean = policy.mean(x, torch.full((len(x),), index), chosen, prompt_index)
        x = (mean + schedule.sigma[index].to(x.device) * model.fresh_noise(sources)).to(model.dtype)
        yield mean, x
