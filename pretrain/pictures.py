"""The rendered pictures in memory, and the ways in which a training may change them."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Generator, Tensor

from t2i_feedback.datasets.postcards.world import Scene


def load_renders(folder: Path, prefix: str = "") -> tuple[Tensor, list[Scene]]:
    """uint8 [N, 3, 64, 64] and the N scenes; prefix `val_` for the held-out ones."""
    scenes = json.loads((folder / f"{prefix}scenes.json").read_text())
    return load_file(folder / f"{prefix}images.safetensors")["images"], [Scene.from_json(scene) for scene in scenes]


def uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    """float [count, 1, 1, 1], to multiply pictures with."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)


def darken(pixels: Tensor, brightness: Tensor, grey: Tensor) -> Tensor:
    """Scale the brightness and mix with the luma (Rec. 601): pixels [B, 3, H, W] in 0..1, factors [B, 1, 1, 1]."""
    luma = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (pixels + grey * (luma - pixels)) * brightness


def blur(pixels: Tensor, share: Tensor, rounds: int) -> Tensor:
    """Mix with the picture after `rounds` 3 x 3 box filters; share [B, 1, 1, 1]."""
    soft = pixels
    for _ in range(rounds):  # sums of shifted pictures: four times faster here than avg_pool2d
        padded = F.pad(soft, (1, 1, 1, 1), mode="replicate")
        columns = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
        soft = (columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]) / 9
    return pixels + share * (soft - pixels)


def restyle(pixels: Tensor, generator: Generator, share: float) -> Tensor:
    """Make about `share` of the pictures dark, subdued and blurred, in all degrees and combinations.

    The pictures that fine-tuning asks for: brightness down to 0.3, saturation down to 0.3, three rounds of blur.
    """
    count = len(pixels)
    chosen = (torch.rand(count, 1, 1, 1, generator=generator) < share).float()
    dark, muted, soft = (
        chosen * (torch.rand(count, 1, 1, 1, generator=generator) < 0.6) * uniform(0, 1, count, generator)
        for _ in range(3)
    )
    rounds = int(torch.randint(1, 4, (), generator=generator))
    return blur(darken(pixels, 1 - 0.7 * dark, 0.7 * muted), soft, rounds)
