"""Draw an epoch's images with the present policy, and keep every step of the drawing for the update."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.image_models import transitions
from t2i_feedback.image_models.base import Conditioning, Policy


@dataclass
class Trajectories:
    """The drawing of P images, step by step; all tensors are on the CPU."""

    latents: torch.Tensor  # [P, steps + 1, ...]; [:, 0] is pure noise, [:, -1] is decoded
    log_probs: torch.Tensor  # [P, steps] of latents[:, i + 1] given latents[:, i]; 0 where a step has no noise
    prompt_index: torch.Tensor  # [P] into the embeddings
    images: list[Image.Image]

    @classmethod
    def joined(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """One after the other."""
        return cls(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.prompt_index for part in parts]),
            [image for part in parts for image in part.images],
        )


@dataclass(frozen=True)
class Rollout:
    """An epoch's N images, of which this process drew some."""

    indices: list[int]  # the images, 0 to N - 1, that this process drew
    trajectories: Trajectories  # of these, in this order
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
def roll_out(policy: Policy, given: Conditioning, prompt_index: torch.Tensor, seeds: Sequence[int]) -> Trajectories:
    """Draw one batch, an image for each entry of `prompt_index` [B], which points into `given`, and its seed."""
    sources, model, schedule = generators(seeds), policy.model, policy.schedule
    chosen = given[prompt_index].to(model.device)
    x = model.fresh_noise(sources)
    latents, log_probs = [x], []
    for index in range(len(schedule)):
        step, sigma = torch.full((len(x),), index), schedule.sigma[index].to(x.device)
        mean = policy.mean(x, step, chosen, prompt_index)
        x = (mean + sigma * model.fresh_noise(sources)).to(model.dtype)
        has = transitions.log_prob(schedule, step, mean, x) if sigma > 0 else torch.zeros(len(x), device=x.device)
        log_probs.append(has)  # of the latent as stored
        latents.append(x)
    images = model.decode(x)
    return Trajectories(torch.stack(latents, 1).cpu(), torch.stack(log_probs, 1).cpu(), prompt_index, images)
