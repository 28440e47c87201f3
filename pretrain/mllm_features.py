"""Look at every picture once with a frozen tower, as it is and restyled, and keep what it saw for the language model.

    PYTHONPATH=src python pretrain/mllm_features.py --model mllm

Writes `pretrain/work/mllm/{model}_features/{renders,drawn}.safetensors`: `tokens` float16 [N, 16, C], `levels`
float32 [N, 3] (dark, muted, blurred: measured on the very picture), `scene` int64 [N]: the row in the list of scenes.
Pictures drawn by the image model (`pretrain/work/drawn`) are taken in as soon as they are there. A source that has been
looked at already is not looked at again.
"""

import json
from pathlib import Path

import torch
from mllm_recipe import read_model_recipe
from mllm_style import restyle, trait_levels
from recipe import Recipe
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import SwinModel

from t2i_feedback.datasets.postcards.world import Scene

CHUNK = 100  # pictures


@torch.no_grad()
def see(tower: SwinModel, images: torch.Tensor, variants: int, seed: int, label: str) -> dict[str, torch.Tensor]:
    """Features of uint8 pictures [N, 3, 64, 64], once plain and `variants` times restyled."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[torch.Tensor]] = {"tokens": [], "levels": [], "scene": []}
    with tqdm(total=len(images) * (1 + variants), desc=label, unit="picture", mininterval=10) as bar:
        for variant in range(1 + variants):
            for first in range(0, len(images), CHUNK):
                chunk = images[first : first + CHUNK].float() / 255
                if variant:
                    chunk = restyle(chunk, generator)
                tokens = tower(chunk * 2 - 1, output_hidden_states=True).hidden_states[-1]
                parts["tokens"].append(tokens.half())
                parts["levels"].append(trait_levels(chunk))
                parts["scene"].append(torch.arange(first, first + len(chunk)))
                bar.update(len(chunk))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def load_scenes(work: Path, source: str) -> list[Scene]:
    """What the pictures of a source show: by construction for renders, as the labeller saw it for drawn ones."""
    if source == "renders":
        return [Scene.from_json(facts) for facts in json.loads((work / "renders" / "scenes.json").read_text())]
    return [Scene.from_json(row["seen"]) for row in json.loads((work / "drawn" / "rows.json").read_text())]


def load_asked(work: Path, source: str) -> list[tuple[str, Scene]]:
    """The caption that each drawn picture was meant to show, and its facts; nobody asked for the renders."""
    if source == "renders":
        return []
    rows = json.loads((work / "drawn" / "rows.json").read_text())
    return [(row["caption"], Scene.from_json(row["facts"])) for row in rows]


def main() -> None:
    recipe: Recipe = read_model_recipe(__doc__, "features")
    params = recipe.params
    model = recipe.section.removesuffix("_features")
    tower = SwinModel.from_pretrained(recipe.work / "mllm" / f"{model}_tower", add_pooling_layer=False).eval()
    folder = recipe.work / "mllm" / recipe.section
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("renders", "drawn"):
        pictures = recipe.work / source / "images.safetensors"
        target = folder / f"{source}.safetensors"
        if pictures.exists() and not target.exists():
            images = load_file(pictures)["images"]
            images = images[: params["renders"]] if source == "renders" else images
            seconds = len(images) * (1 + params["variants"]) / params["pictures_per_second"]
            print(f"{source}: {len(images)} pictures, about {seconds / 60:.1f} minutes on one core", flush=True)
            save_file(see(tower, images, params["variants"], params["seed"], source), target)


if __name__ == "__main__":
    main()
