"""What the image model can draw: captions of held-out scenes, read by the oracle. `model_card.py` calls this.

Scoring is strict: a copy of a named thing, a thing that nobody asked for and an unclear blob all make a picture wrong.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from drawing import draw
from oracle import accuracy
from pictures import restyle
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from vae import quality as reconstruction_quality

from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.world import LEVELS, Scene
from t2i_feedback.evaluation import intervals
from t2i_feedback.evaluation.alignment import Alignment, Oracle, score

GRID = 8  # pictures per row and column
TILE, MARGIN = 128, 46  # pixels of a picture in the grid, and of the caption below it


@dataclass(frozen=True)
class Captioned:
    """Captions of held-out scenes, the levels in turn, with the facts that each states and its scene."""

    levels: list[str]
    texts: list[str]
    facts: list[Scene]
    scenes: list[Scene]

    @classmethod
    def sample(cls, scenes: list[Scene], count: int, seed: int, levels: tuple[str, ...] = LEVELS) -> "Captioned":
        rng = random.Random(seed)
        chosen = [rng.choice(scenes) for _ in range(count)]
        told = [levels[index % len(levels)] for index in range(count)]
        texts, facts = zip(*(caption(s, rng, level) for s, level in zip(chosen, told, strict=True)), strict=True)
        return cls(told, list(texts), list(facts), chosen)


def see(oracle: Oracle, pictures: Tensor) -> list[dict]:
    """The facts of uint8 pictures [N, 3, 64, 64]."""
    return [facts for chunk in pictures.split(200) for facts in oracle.see(chunk.float() / 255)]


def alignments(oracle: Oracle, pictures: Tensor, facts: list[Scene]) -> list[Alignment]:
    """How each picture answers the facts that its caption states."""
    return [score(stated.to_json(), seen) for stated, seen in zip(facts, see(oracle, pictures), strict=True)]


def mean(answers: list) -> float | None:
    return round(float(np.mean(answers)), 3) if answers else None


def summarise(levels: list[str], found: list[Alignment]) -> dict[str, float | None]:
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


def measure_reading(oracle: Oracle, vae, images: Tensor, scenes: list[Scene], seed: int) -> dict[str, dict]:
    """What the oracle reads off held-out renders, off restyled ones, and off the VAE's reconstructions."""
    restyled = restyle(images.float() / 255, Generator().manual_seed(seed), share=1.0)
    return {
        "oracle on held-out renders": accuracy(oracle, images, scenes),
        "oracle on held-out renders, dark, subdued and blurred": accuracy(oracle, (restyled * 255).byte(), scenes),
        "oracle on the VAE's reconstructions": reconstruction_quality(vae, oracle, images, scenes),
    }


def measure_detail(oracle: Oracle, pipeline, scenes: list[Scene], p: dict) -> dict[str, float | None]:
    """Is a detailed prompt worth having? Terse captions against faithful detailed ones of the same scenes.

    The same noise for both; only what the terse caption states is scored. `gain` is detailed minus terse with its
    paired 95 % bootstrap interval.
    """
    terse = Captioned.sample(scenes, p["pairs"], p["seed"] + 1, ("terse",))
    rng = random.Random(p["seed"])
    detailed = [caption(scene, rng, "detailed")[0] for scene in terse.scenes]
    found = {}
    for name, texts in (("terse", terse.texts), ("detailed", detailed)):
        pictures = draw(pipeline, texts, p["steps"], p["guidance"], p["seed"], eta=0.0)
        found[name] = alignments(oracle, pictures, terse.facts)
    figures: dict[str, float | None] = {}
    for measure in ("share", "whole"):
        values = {n: {i: float(getattr(f, measure)) for i, f in enumerate(rows)} for n, rows in found.items()}
        gain = intervals.difference(values["detailed"], values["terse"], 1000, np.random.default_rng(p["seed"]))
        assert gain is not None  # every picture has a score
        figures |= {f"{measure}, {name}": mean(list(rows.values())) for name, rows in values.items()}
        figures |= {f"{measure}, gain": round(gain.value, 3)}
        figures |= {f"{measure}, gain from": round(gain.low, 3), f"{measure}, gain to": round(gain.high, 3)}
    return figures


def save_grid(pictures: Tensor, texts: list[str], path: Path) -> None:
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
    sheet.quantize(255, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def stages_of_finetuning(pipeline, adapter: Path, captions: Captioned, p: dict) -> dict[float, Tensor]:
    """Pictures of the same captions as fine-tuning proceeds: the adapter at growing shares of its strength."""
    pipeline.load_lora_weights(adapter, weight_name="pytorch_lora_weights.safetensors")
    (name,) = pipeline.get_active_adapters()
    drawn = {}
    for share in p["adapter_shares"]:
        pipeline.set_adapters([name], [share])
        drawn[share] = draw(pipeline, captions.texts, p["steps"], p["guidance"], p["seed"], eta=0.0)
    pipeline.unload_lora_weights()
    return drawn
