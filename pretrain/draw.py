"""Let the image model draw training captions, so that the MLLMs also learn from generated pictures.

    PYTHONPATH=src python pretrain/draw.py

Writes `pretrain/work/drawn/`: images.safetensors (`images`, uint8 [N, 3, 64, 64]) and rows.json, in that order, with
the caption, the facts that it states, and what the labeller sees (not the oracle, which only measures).
"""

import json
import random

import torch
from drawing import draw, load_pipeline
from recipe import read_recipe
from safetensors.torch import save_file
from text_encoder import write_caption

from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.evaluation.alignment import Oracle


def main() -> None:
    recipe = read_recipe(__doc__, "draw")
    p = recipe.params
    rng = random.Random(p["seed"])
    captions = [write_caption(sample_scene(rng, "train"), rng, p["levels"], 0.0)[:2] for _ in range(p["pictures"])]
    print(
        f"draw: {len(captions)} pictures, about {len(captions) / p['pictures_per_second'] / 60:.1f} minutes", flush=True
    )
    pipeline, half = load_pipeline(recipe.models / "sd"), len(captions) // 2
    texts = [text for text, _ in captions]
    images = torch.cat(
        [
            draw(pipeline, texts[:half], p["sampling_steps"], p["guidance"], p["seed"], eta=0.0),
            draw(pipeline, texts[half:], p["sampling_steps"], p["guidance"], p["seed"], eta=1.0),
        ]
    )
    labeller = Oracle.from_pretrained(recipe.work / "labeller")
    seen = [facts for chunk in images.split(200) for facts in labeller.see(chunk.float() / 255)]
    rows = [
        {"caption": text, "facts": facts.to_json(), "seen": shown}
        for (text, facts), shown in zip(captions, seen, strict=True)
    ]
    folder = recipe.work / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": images}, folder / "images.safetensors")
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
