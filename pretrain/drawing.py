"""Draw pictures for captions with a saved pipeline."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Generator, Tensor
from tqdm import tqdm

BATCH = 50  # pictures per call


def load_pipeline(folder: Path) -> Any:
    """The saved pipeline in float32, without a progress bar of its own."""
    flow = json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"
    without = {"text_encoder_3": None, "tokenizer_3": None} if flow else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompts: list[str], steps: int, guidance: float, seed: int, **settings: Any) -> Tensor:
    """uint8 [N, 3, 64, 64], one picture for each prompt. `settings` are its own: eta, max_sequence_length."""
    generator, pictures = Generator().manual_seed(seed), []
    told = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    for start in tqdm(range(0, len(prompts), BATCH), desc=f"draw, {told}", unit="batch", mininterval=10):
        batch = pipeline(
            prompts[start : start + BATCH],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
            **settings,
        )
        pictures.append((batch.images.clamp(0, 1) * 255).round().byte())
    return torch.cat(pictures)
