"""Measure the tiny MLLMs on held-out scenes, through the plain transformers API, as the product uses them.

    PYTHONPATH=src python pretrain/mllm_measure.py

Prints and writes `models/postcards/quality_mllm.json`. Drawn pictures (the last of `pretrain/work/drawn`, which nothing
trains on) are judged against the oracle, which nothing trains on either.
"""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mllm_grammar import complaints, is_true, parse, repair
from mllm_questions import (
    ATTRIBUTES,
    ENHANCE,
    ENHANCE_AGAIN,
    JUDGE,
    PAPER_PREFERENCE,
    VALIDATE,
    clear_part,
    false_caption,
    falsify,
    preference_level,
)
from mllm_recipe import MODELS
from mllm_style import blur, luma, restyle, trait_levels
from mllm_tower import load_renders
from PIL import Image
from recipe import Recipe, read_recipe
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from t2i_feedback.datasets.postcards import LEVELS, Scene, caption
from t2i_feedback.evaluation.alignment import Oracle

BATCH = 50  # pictures or prompts
PREFERENCES = {
    "paper": (PAPER_PREFERENCE, (1, 1, 1)),
    "dark": ("dark images", (1, 0, 0)),
    "bright": ("bright images", (-1, 0, 0)),
    "muted": ("muted colours", (0, 1, 0)),
    "vivid": ("vivid colours", (0, -1, 0)),
    "blurred": ("a blurred appearance", (0, 0, 1)),
    "sharp": ("sharp details", (0, 0, -1)),
}


@dataclass
class Mllm:
    """A model with its processor, asked one question with or without one picture at a time."""

    processor: AutoProcessor
    model: AutoModelForImageTextToText

    @classmethod
    def load(cls, folder: Path) -> "Mllm":
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(AutoProcessor.from_pretrained(folder), model)

    def _inputs(self, texts: list[str], pictures: list[Image.Image] | None) -> dict:
        parts = [[{"type": "text", "text": text}] for text in texts]
        if pictures is not None:
            parts = [[{"type": "image", "image": p}, *part] for p, part in zip(pictures, parts, strict=True)]
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": part}] for part in parts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def token(self, word: str) -> int:
        """The one token of an answer."""
        (token,) = self.processor.tokenizer(word, add_special_tokens=False).input_ids
        return token

    @torch.no_grad()
    def first_token(self, texts: list[str], pictures: list[Image.Image], answers: list[str]) -> np.ndarray:
        """Probabilities [N, answers] of the answers' tokens as the first of the reply, renormalised."""
        tokens = [self.token(answer) for answer in answers]
        parts = []
        for first in tqdm(range(0, len(texts), BATCH), desc="asked", unit="batch", mininterval=10):
            batch = slice(first, first + BATCH)
            logits = self.model(**self._inputs(texts[batch], pictures[batch]), logits_to_keep=1).logits[:, -1, tokens]
            parts.append(logits.softmax(-1))
        return torch.cat(parts).numpy()

    def p_yes(self, captions: list[str], pictures: list[Image.Image]) -> np.ndarray:
        return self.first_token([VALIDATE.format(text) for text in captions], pictures, ["yes", "no"])[:, 0]

    def score(self, preference: str, pictures: list[Image.Image]) -> np.ndarray:
        """Expected score, 1 to 10, of every picture."""
        scores = [str(number) for number in range(1, 11)]
        return self.first_token([JUDGE.format(preference)] * len(pictures), pictures, scores) @ np.arange(1, 11)

    @torch.no_grad()
    def reply(self, texts: list[str]) -> list[tuple[str, bool]]:
        """Greedy answers to texts, and whether each ended by itself."""
        replies = []
        for first in range(0, len(texts), BATCH):
            inputs = self._inputs(texts[first : first + BATCH], None)
            ids = self.model.generate(**inputs, max_new_tokens=60, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            ended = (ids == self.processor.tokenizer.eos_token_id).any(1).tolist()
            replies += zip(self.processor.batch_decode(ids, skip_special_tokens=True), ended, strict=True)
        return replies


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Float pictures [N, 3, H, W] in 0..1 as Pillow images, rounded to 8 bits."""
    return [Image.fromarray(p) for p in (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]


def auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The chance that a true caption gets a higher P(yes) than a false one; None where one of them is wanting."""
    if not len(positive) or not len(negative):
        return None
    higher, equal = positive[:, None] > negative[None], positive[:, None] == negative[None]
    return round(float(higher.mean() + 0.5 * equal.mean()), 4)


def validator_questions(scenes: list[Scene], seed: int) -> list[dict]:
    """For every scene and level: a true caption and a false one."""
    rng = random.Random(seed)
    rows = []
    for index, scene in enumerate(scenes):
        for level in LEVELS:
            false, _, attribute = false_caption(scene, rng, level)
            rows.append({"picture": index, "level": level, "attribute": None, "caption": caption(scene, rng, level)[0]})
            rows.append({"picture": index, "level": level, "attribute": attribute, "caption": false})
    return rows


def validator_quality(rows: list[dict], p_yes: np.ndarray) -> dict:
    """Balanced accuracy at P(yes) = .5: overall, by level, by the attribute that is false; and the AUC."""
    attribute = np.array([row["attribute"] or "" for row in rows])
    level = np.array([row["level"] for row in rows])
    said, true = p_yes > 0.5, attribute == ""

    def balanced(positive: np.ndarray, negative: np.ndarray) -> float | None:
        if not positive.any() or not negative.any():
            return None
        return round(float(said[positive].mean() + (~said[negative]).mean()) / 2, 4)

    return {
        "balanced_accuracy": balanced(true, ~true),
        "auc": auc(p_yes[true], p_yes[~true]),
        "questions": {"true": int(true.sum()), "false": int((~true).sum())},
        "by_level": {str(n): balanced(true & (level == n), ~true & (level == n)) for n in np.unique(level)},
        "by_attribute": {
            name: balanced(true & np.isin(level, ATTRIBUTES[name]), attribute == name) for name in ATTRIBUTES
        },
    }


def preference_quality(mllm: Mllm, images: torch.Tensor) -> tuple[dict, np.ndarray]:
    """Correlations with the measured truth for each preference, and the errors for the paper's."""
    pictures = to_pictures(images)
    levels = trait_levels((images * 255).round() / 255)
    quality, errors = {}, np.empty(0)
    for name, (text, signs) in PREFERENCES.items():
        truth = np.array([1 + 9 * preference_level(tuple(level), signs) for level in levels.tolist()])
        score = mllm.score(text, pictures)
        quality[name] = {
            "r": round(float(pearsonr(score, truth)[0]), 4),
            "spearman": round(float(spearmanr(score, truth)[0]), 4),
            "mean_absolute_error": round(float(np.abs(score - truth).mean()), 3),
        }
        if name == "paper":
            errors = score - truth
    return quality, errors


def sweep_quality(mllm: Mllm, images: torch.Tensor) -> dict:
    """Share of neighbouring pairs ranked rightly for the paper's preference when one trait is swept in five steps."""
    strengths = torch.linspace(0, 1, 5)
    grey = luma(images)[:, None]
    sweeps = {
        "darker": [images * (1 - 0.6 * s) for s in strengths],
        "less_saturated": [images + (grey - images) * 0.9 * s for s in strengths],
        "more_blurred": [blur(images, torch.full((len(images),), 2.0 * float(s))) for s in strengths],
    }
    return {
        name: round(
            float((np.diff([mllm.score(PAPER_PREFERENCE, to_pictures(x)) for x in steps], axis=0) > 0).mean()), 4
        )
        for name, steps in sweeps.items()
    }


def keeps(facts: Scene, reply: Scene) -> bool:
    """Every stated attribute is kept and exactly the same things are named."""
    return is_true(facts, reply)


def enhance_quality(mllm: Mllm, scenes: list[Scene], seed: int) -> dict:
    """Rewriting of short prompts, without and with last time's complaint."""
    rng = random.Random(seed)
    prompts = [caption(scene, rng, rng.choice(("terse", "medium"))) for scene in scenes]
    shares = {
        "attributes_kept": 0,
        "in_grammar": 0,
        "no_thing_added": 0,
        "fully_detailed": 0,
        "ended": 0,
        "one_sentence": 0,
    }
    for (_, facts), (text, ended) in zip(
        prompts, mllm.reply([ENHANCE.format(text) for text, _ in prompts]), strict=True
    ):
        parsed = parse(text)
        shares["in_grammar"] += parsed is not None
        shares["ended"] += ended
        shares["one_sentence"] += "\n" not in text and "." not in text.rstrip(".")
        if parsed:
            shares["attributes_kept"] += keeps(facts, parsed[0])
            shares["no_thing_added"] += len(parsed[0].things) == len(facts.things)
            full = all(thing.colour and thing.size and thing.column for thing in parsed[0].things)
            shares["fully_detailed"] += bool(full and parsed[0].background)
    again = []
    for (text, facts), scene in zip(prompts, scenes, strict=True):
        false = falsify(scene, rng.choice(list(ATTRIBUTES)), rng) or scene
        again.append((text, facts, complaints(facts, false)[0]))
    repaired = kept = 0
    replies = mllm.reply([ENHANCE_AGAIN.format(text, complaint) for text, _, complaint in again])
    for (_, facts, complaint), (text, _) in zip(again, replies, strict=True):
        parsed = parse(text)
        if parsed:
            kept += keeps(facts, parsed[0])
            repaired += complaint == "nothing" or repair(complaint, parsed[0]) in parsed[1]
    count = len(scenes)
    shares |= {"again_attributes_kept": kept, "again_repaired": repaired}
    return {name: round(value / count, 4) for name, value in shares.items()}


def drawn_questions(recipe: Recipe, seed: int) -> tuple[list[dict], torch.Tensor]:
    """The captions that held-out drawn pictures were meant to show, and true and false ones, by the oracle's eyes."""
    folder = recipe.work / "drawn"
    images = load_file(folder / "images.safetensors")["images"][-recipe.params["drawn"] :]
    seen = [Scene.from_json(facts) for facts in Oracle.from_pretrained(recipe.models / "oracle").see(images / 255)]
    told = json.loads((folder / "rows.json").read_text())[-len(images) :]
    rng = random.Random(seed)
    rows = []
    for index, scene in enumerate(seen):
        facts = Scene.from_json(told[index]["facts"])
        true = is_true(facts, scene)
        rows.append(
            {
                "picture": index,
                "level": "asked",
                "attribute": None if true else "asked",
                "caption": told[index]["caption"],
            }
        )
        if scene == clear_part(scene) and scene.things:
            rows += [row | {"picture": index} for row in validator_questions([scene], rng.randrange(1 << 30))]
    return rows, images / 255


def speed(mllm: Mllm, pictures: list[Image.Image]) -> float:
    """Pictures judged in a second, processor included."""
    mllm.score(PAPER_PREFERENCE, pictures[:BATCH])
    start = time.perf_counter()
    mllm.score(PAPER_PREFERENCE, pictures)
    return round(len(pictures) / (time.perf_counter() - start), 1)


def main() -> None:
    recipe = read_recipe(__doc__, "mllm_measure")
    params = recipe.params
    images, scenes = load_renders(recipe.work / "renders", "val_", params["scenes"])
    images = images / 255
    styled = restyle(images, torch.Generator().manual_seed(params["seed"]))
    rows = validator_questions(scenes, params["seed"])
    quality: dict[str, dict] = {}
    errors, wrong = [], []
    for name in MODELS:
        mllm = Mllm.load(recipe.models / name)
        found: dict[str, dict | float] = {}
        for look, shown in (("validator", images), ("validator_restyled", styled)):
            pictures = to_pictures(shown)
            p_yes = mllm.p_yes([row["caption"] for row in rows], [pictures[row["picture"]] for row in rows])
            found[look] = validator_quality(rows, p_yes)
            if look == "validator":
                wrong.append((p_yes > 0.5) != np.array([row["attribute"] is None for row in rows]))
        if (recipe.work / "drawn" / "rows.json").exists():
            drawn_rows, drawn = drawn_questions(recipe, params["seed"])
            pictures = to_pictures(drawn)
            p_yes = mllm.p_yes([row["caption"] for row in drawn_rows], [pictures[row["picture"]] for row in drawn_rows])
            found["validator_drawn"] = validator_quality(drawn_rows, p_yes)
        found["preference"], missed = preference_quality(mllm, styled)
        errors.append(missed)
        found["sweeps_ranked_rightly"] = sweep_quality(mllm, images[:40])
        found["judged_pictures_per_second"] = speed(mllm, to_pictures(styled))
        if name == "mllm":
            found["enhancement"] = enhance_quality(mllm, scenes, params["seed"])
        quality[name] = found
        print(name, json.dumps(found, indent=1), flush=True)
    quality["between_the_judges"] = {
        "r_of_preference_errors": round(float(pearsonr(*errors)[0]), 4),
        "r_of_validator_errors": round(float(pearsonr(*(w.astype(float) for w in wrong))[0]), 4),
    }
    print(json.dumps(quality["between_the_judges"]))
    (recipe.models / "quality_mllm.json").write_text(json.dumps(quality, indent=2) + "\n")


if __name__ == "__main__":
    main()
