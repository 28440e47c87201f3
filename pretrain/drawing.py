"""Draw pictures for captions with a saved pipeline."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Generator, Tensor
from tqdm import tqdm

BATCH = 50  # pictures per call


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The saved pipeline in float32, without a progress bar of its own."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float, eta: float, seed: int
) -> Tensor:
    """uint8 [N, 3, 64, 64], one picture for each prompt."""
    generator, pictures = Generator().manual_seed(seed), []
    for start in tqdm(range(0, len(prompts), BATCH), desc=f"draw, eta {eta:g}", unit="batch", mininterval=10):
        batch = pipeline(
            prompts[start : start + BATCH],
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            generator=generator,
            output_type="pt",
        )
        pictures.append((batch.images.clamp(0, 1) * 255).round().byte())
    return torch.cat(pictures)
