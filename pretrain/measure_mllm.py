"""What the tiny MLLMs can do, through the plain transformers API, as the product uses them. `model_card.py` calls this.

Renders are judged against what they were rendered from, pictures drawn by the image model against the oracle, which
nothing trains on.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from mllm_grammar import complaints, is_true, parse, repair
from mllm_questions import (
    ATTRIBUTES,
    ENHANCE,
    ENHANCE_AGAIN,
    FEEDBACK,
    IS_THERE,
    JUDGE,
    LIST,
    PAPER_PREFERENCE,
    PARAPHRASES,
    VALIDATE,
    clear_part,
    false_caption,
    falsify,
    list_items,
    preference_level,
)
from mllm_style import blur, luma, trait_levels
from PIL import Image
from scipy.stats import pearsonr, spearmanr
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from t2i_feedback.calibration import discrimination
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.world import LEVELS, Scene

BATCH = 50  # pictures or prompts
HALF = 0.5  # P(yes) = P(no)
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

    def p_yes(self, questions: list[str], pictures: list[Image.Image]) -> np.ndarray:
        """P(yes) / (P(yes) + P(no)) of each question about its picture."""
        return self.first_token(questions, pictures, ["yes", "no"])[:, 0]

    def score(self, preference: str, pictures: list[Image.Image], template: str = JUDGE) -> np.ndarray:
        """Expected score, 1 to 10, of every picture."""
        scores = [str(number) for number in range(1, 11)]
        return self.first_token([template.format(preference)] * len(pictures), pictures, scores) @ np.arange(1, 11)

    @torch.no_grad()
    def reply(self, texts: list[str], pictures: list[Image.Image] | None = None) -> list[tuple[str, bool]]:
        """Greedy answers to texts, each about its picture if there are any, and whether each ended by itself."""
        replies: list[tuple[str, bool]] = []
        for first in range(0, len(texts), BATCH):
            batch = slice(first, first + BATCH)
            inputs = self._inputs(texts[batch], pictures and pictures[batch])
            ids = self.model.generate(**inputs, max_new_tokens=60, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            ended = (ids == self.processor.tokenizer.eos_token_id).any(1).tolist()
            replies += zip(self.processor.batch_decode(ids, skip_special_tokens=True), ended, strict=True)
        return replies


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Float pictures [N, 3, H, W] in 0..1 as Pillow images, rounded to 8 bits."""
    return [Image.fromarray(p) for p in (images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]


@dataclass
class Asked:
    """Captions put to a validator: about which picture, at which level, with which facts, and what is false in them.

    `attribute` is empty for a true caption, "asked" for the false caption that a picture was drawn for.
    """

    picture: list[int] = field(default_factory=list)
    level: list[str] = field(default_factory=list)
    attribute: list[str] = field(default_factory=list)
    caption: list[str] = field(default_factory=list)
    facts: list[Scene] = field(default_factory=list)

    def add(self, picture: int, level: str, attribute: str, text: str, facts: Scene) -> None:
        for column, value in zip(vars(self).values(), (picture, level, attribute, text, facts), strict=True):
            column.append(value)

    def about(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """The picture of every question."""
        return [pictures[index] for index in self.picture]

    @property
    def true(self) -> np.ndarray:
        return np.array([not name for name in self.attribute])


def ask_about(shown: list[Scene], seed: int, asked: list[tuple[str, Scene]] | None = None) -> Asked:
    """For every picture and level a true caption and a false one; and the captions that drawn pictures were asked for.

    A drawn picture that shows something unclear gets only the caption that it was drawn for.
    """
    rng = random.Random(seed)
    rows = Asked()
    for index, scene in enumerate(shown):
        if asked:
            text, facts = asked[index]
            rows.add(index, "asked", "" if is_true(facts, scene) else "asked", text, facts)
        if scene.things and scene == clear_part(scene):
            for level in LEVELS:
                false, false_facts, attribute = false_caption(scene, rng, level)
                rows.add(index, level, "", *caption(scene, rng, level))
                rows.add(index, level, attribute, false, false_facts)
    return rows


def ask_left_or_right(shown: list[Scene], seed: int) -> Asked:
    """For every picture with a thing on one side a true detailed caption, and one with left and right exchanged."""
    rng = random.Random(seed)
    rows = Asked()
    other = {"left": "right", "right": "left"}
    for index, scene in enumerate(shown):
        things = tuple(replace(thing, column=other.get(thing.column, thing.column)) for thing in scene.things)
        mirrored = replace(scene, things=things)
        if not is_true(mirrored, scene):
            rows.add(index, "detailed", "", *caption(scene, rng, "detailed"))
            rows.add(index, "detailed", "column", *caption(mirrored, rng, "detailed"))
    return rows


def validator_quality(rows: Asked, p_yes: np.ndarray) -> dict:
    """Balanced accuracy at P(yes) = .5: overall, by level, by the attribute that is false; AUC; calibration error."""
    attribute, level, true = np.array(rows.attribute), np.array(rows.level), rows.true
    return {
        "balanced_accuracy": _of(discrimination.balanced_accuracy, p_yes[true], p_yes[~true], HALF),
        "auc": _of(discrimination.auc, p_yes[true], p_yes[~true]),
        "calibration_error": _of(discrimination.calibration_error, p_yes[true], p_yes[~true]),
        "questions": {"true": int(true.sum()), "false": int((~true).sum())},
        "by_level": {
            str(n): _of(discrimination.balanced_accuracy, p_yes[true & (level == n)], p_yes[~true & (level == n)], HALF)
            for n in np.unique(level)
        },
        "by_attribute": {
            name: _of(
                discrimination.balanced_accuracy,
                p_yes[true & np.isin(level, ATTRIBUTES[name])],
                p_yes[attribute == name],
                HALF,
            )
            for name in ATTRIBUTES
        },
    }


def _of(measure: Callable[..., float], true: np.ndarray, false: np.ndarray, *more: float) -> float | None:
    """A measure of P(yes) of true and false captions; None where there are none of either."""
    return round(measure(true.tolist(), false.tolist(), *more), 4) if len(true) and len(false) else None


def _share(answers: list) -> float | None:
    return round(float(np.mean(answers)), 4) if len(answers) else None


def best_threshold(rows: Asked, p_yes: np.ndarray) -> dict[str, float]:
    """The P(yes) from which accepting gives the best balanced accuracy, and that accuracy."""
    true, false = p_yes[rows.true].tolist(), p_yes[~rows.true].tolist()
    best = discrimination.best_threshold(true, false)
    reached = discrimination.balanced_accuracy(true, false, best)
    return {"threshold": round(best, 3), "balanced_accuracy": round(reached, 4)}


def steadiness(mllm: Mllm, rows: Asked, pictures: list[Image.Image], p_yes: np.ndarray) -> dict[str, float | None]:
    """Do verdicts and scores stay when a question comes in another batch, or in other words?"""
    order = np.random.default_rng(0).permutation(len(p_yes))
    shown = rows.about(pictures)
    again = mllm.p_yes([VALIDATE.format(rows.caption[i]) for i in order], [shown[i] for i in order])
    figures = {"verdicts the same in another batch": _share(((again >= HALF) == (p_yes[order] >= HALF)).tolist())}
    for number, words in enumerate(PARAPHRASES[VALIDATE], 1):
        other = mllm.p_yes([words.format(text) for text in rows.caption], shown)
        figures[f"verdicts the same in other words {number}"] = _share(((other >= HALF) == (p_yes >= HALF)).tolist())
    scores = mllm.score(PAPER_PREFERENCE, pictures)
    for number, words in enumerate(PARAPHRASES[JUDGE], 1):
        other = mllm.score(PAPER_PREFERENCE, pictures, words)
        figures[f"r of scores in other words {number}"] = round(float(pearsonr(scores, other)[0]), 4)
    return figures


def feedback_quality(mllm: Mllm, rows: Asked, shown: list[Scene], pictures: list[Image.Image]) -> dict:
    """Complaints about false captions that are true complaints, and true captions left in peace."""
    replies = mllm.reply([FEEDBACK.format(text) for text in rows.caption], rows.about(pictures))
    right = [
        text in complaints(facts, shown[picture])
        for (text, _), facts, picture in zip(replies, rows.facts, rows.picture, strict=True)
    ]
    return {
        "complaint right": _share([r for r, true in zip(right, rows.true, strict=True) if not true]),
        "nothing wrong with a true caption": _share([r for r, true in zip(right, rows.true, strict=True) if true]),
    }


def question_wise_quality(mllm: Mllm, rows: Asked, pictures: list[Image.Image]) -> dict:
    """Captions taken apart into items, and the verdict "every item is there" (which cannot see the uninvited)."""
    lists = [text for text, _ in mllm.reply([LIST.format(text) for text in rows.caption])]
    items = [[item for item in text.split("; ") if item] for text in lists]
    shown = rows.about(pictures)
    pairs = [(row, item) for row, found in enumerate(items) for item in found]
    p_yes = mllm.p_yes([IS_THERE.format(item) for _, item in pairs], [shown[row] for row, _ in pairs])
    all_there = np.array([float(bool(found)) for found in items])  # the least P(yes) of a caption's items
    for (row, _), p in zip(pairs, p_yes, strict=True):
        all_there[row] = min(all_there[row], p)
    seen = np.array([name != "uninvited" for name in rows.attribute])
    return {
        "lists right": _share([found == list_items(facts) for found, facts in zip(items, rows.facts, strict=True)]),
        "balanced_accuracy, uninvited things apart": _of(
            discrimination.balanced_accuracy, all_there[rows.true], all_there[~rows.true & seen], HALF
        ),
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
        "no_place_added": 0,
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
            shares["no_place_added"] += parsed[0].background == facts.background
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


def speed(mllm: Mllm, pictures: list[Image.Image]) -> float:
    """Pictures judged in a second, processor included."""
    mllm.score(PAPER_PREFERENCE, pictures[:BATCH])
    start = time.perf_counter()
    mllm.score(PAPER_PREFERENCE, pictures)
    return round(len(pictures) / (time.perf_counter() - start), 1)
