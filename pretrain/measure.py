"""Measure the image model with the oracle, on captions of held-out scenes.

    PYTHONPATH=src python pretrain/measure.py

Prints a table, and writes `models/postcards/quality_image.json` and an uncurated grid of 64 pictures,
`models/postcards/sample_image.png`. Scoring is strict: a copy of a named thing, a thing that nobody asked for and an
unclear blob all make a picture wrong.
"""

import json
import random

import numpy as np
from drawing import draw, load_pipeline
from oracle import accuracy
from pictures import load_renders, restyle
from PIL import Image, ImageDraw
from recipe import Recipe, read_recipe
from torch import Generator, Tensor
from vae import quality as reconstruction_quality

from t2i_feedback.datasets.postcards import LEVELS, Scene, caption
from t2i_feedback.evaluation.alignment import Alignment, Oracle, score

GRID = 8  # pictures per row and column
TILE, MARGIN = 128, 46  # pixels of a picture in the grid, and of the caption below it


def mean(answers: list) -> float:
    return round(float(np.mean(answers)), 3) if answers else float("nan")


def summarise(levels: list[str], found: list[Alignment]) -> dict[str, float]:
    """Shares of right answers over all levels, or one; "given kind": of the things that detailed captions get."""
    names = ("background", "kind", "colour", "size")
    pooled = {name: mean([answer for f in found for answer in getattr(f, name)]) for name in names}
    detailed = [f for level, f in zip(levels, found, strict=True) if level == "detailed"]
    there = sum(sum(f.kind) for f in detailed)
    for name in ("colour", "size", "column"):
        pooled[f"{name} given kind"] = round(sum(sum(getattr(f, name)) for f in detailed) / max(1, there), 3)
    for wanted in LEVELS:
        chosen = [f for level, f in zip(levels, found, strict=True) if level == wanted]
        pooled[f"whole, {wanted}"] = mean([f.whole for f in chosen])
        pooled[f"facts right, ignoring the uninvited, {wanted}"] = mean([_stated_right(f) for f in chosen])
        pooled[f"uninvited, {wanted}"] = mean([f.uninvited for f in chosen])
    return pooled


def _stated_right(found: Alignment) -> bool:
    return all(found.background + found.kind + found.colour + found.size + found.column)


def save_grid(pictures: Tensor, texts: list[str], recipe: Recipe) -> None:
    """The first 64 pictures with their captions, none left out."""
    sheet = Image.new("RGB", (GRID * (TILE + 4), GRID * (TILE + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, text) in enumerate(zip(pictures[: GRID**2], texts, strict=False)):
        x, y = place % GRID * (TILE + 4), place // GRID * (TILE + MARGIN)
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((TILE, TILE), Image.Resampling.BICUBIC)
        sheet.paste(tile, (x, y))
        lines = [""]
        for word in text.split():
            if len(lines[-1]) + len(word) > 23:
                lines.append("")
            lines[-1] += f"{word} "
        pen.multiline_text((x + 1, y + TILE), "\n".join(lines[:4]), fill="black", spacing=0, font_size=10)
    sheet.save(recipe.models / "sample_image.png")


def main() -> None:
    recipe = read_recipe(__doc__, "measure")
    p = recipe.params
    oracle = Oracle.from_pretrained(recipe.models / "oracle")
    images, scenes = load_renders(recipe.work / "renders", "val_")
    pipeline = load_pipeline(recipe.models / "sd")
    restyled = restyle(images.float() / 255, Generator().manual_seed(p["seed"]), share=1.0)
    quality: dict[str, dict[str, float]] = {
        "oracle on held-out renders": accuracy(oracle, images, scenes),
        "oracle on held-out renders, dark, subdued and blurred": accuracy(oracle, (restyled * 255).byte(), scenes),
        "oracle on the VAE's reconstructions": reconstruction_quality(pipeline.vae, oracle, images, scenes),
    }

    rng = random.Random(p["seed"])
    levels = [LEVELS[index % len(LEVELS)] for index in range(p["pictures"])]
    captions: list[tuple[str, Scene]] = [caption(rng.choice(scenes), rng, level) for level in levels]
    texts = [text for text, _ in captions]
    for eta in p["etas"]:
        pictures = draw(pipeline, texts, p["sampling_steps"], p["guidance"], eta, p["seed"])
        seen = [facts for chunk in pictures.split(200) for facts in oracle.see(chunk.float() / 255)]
        found = [score(facts.to_json(), shown) for (_, facts), shown in zip(captions, seen, strict=True)]
        quality[f"{p['sampling_steps']} steps, guidance {p['guidance']}, eta {eta}"] = summarise(levels, found)
        if eta == p["etas"][0]:
            save_grid(pictures, texts, recipe)
    for name, figures in quality.items():
        print(f"\n{name} ({p['pictures']} captions)" if "steps" in name else f"\n{name}")
        print("\n".join(f"  {value:7.3f}  {what}" for what, value in figures.items()))
    (recipe.models / "quality_image.json").write_text(json.dumps(quality, indent=2) + "\n")


if __name__ == "__main__":
    main()
