"""Draw the fixed set of pictures that the embedded models learn from, and a held-out one.

    PYTHONPATH=src python pretrain/render.py

Writes `pretrain/work/renders/`: images.safetensors (`images`, uint8 [N, 3, 64, 64]) and scenes.json (a list of scenes
in the same order), and the same with the prefix `val_` for scenes of the validation split.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from recipe import read_recipe
from safetensors.torch import save_file
from tqdm import tqdm

from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import SIDE, Scene, sample_scene


def draw_split(split: str, count: int, seed: int) -> tuple[np.ndarray, list[Scene]]:
    """`count` random scenes of one split and their pictures, uint8 [count, 3, 64, 64]."""
    rng = random.Random(f"{seed}/{split}")
    scenes = [sample_scene(rng, split) for _ in range(count)]
    pictures = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for index, scene in enumerate(tqdm(scenes, desc=f"render {split}", unit="picture", mininterval=5)):
        pictures[index] = np.asarray(render(scene, rng)).transpose(2, 0, 1)
    return pictures, scenes


def render_split(folder: Path, prefix: str, split: str, count: int, seed: int) -> None:
    """Write pictures and scenes of one split."""
    pictures, scenes = draw_split(split, count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": torch.from_numpy(pictures)}, folder / f"{prefix}images.safetensors")
    (folder / f"{prefix}scenes.json").write_text(json.dumps([scene.to_json() for scene in scenes]))


def main() -> None:
    recipe = read_recipe(__doc__, "render")
    folder, p = recipe.work / "renders", recipe.params
    count = p["scenes"] + p["val_scenes"]
    print(f"render: {count} pictures, about {count / p['pictures_per_second'] / 60:.1f} minutes", flush=True)
    render_split(folder, "val_", "val", recipe.params["val_scenes"], recipe.params["seed"])
    render_split(folder, "", "train", recipe.params["scenes"], recipe.params["seed"])


if __name__ == "__main__":
    main()
