"""Time to reward at equal alignment: what does fine-tuning gain per CPU second, and what does it cost?

    python benchmarks/objectives.py --model models/postcards/sd --seeds 5 [NAME ...]
    python benchmarks/objectives.py --settings benchmarks/budgets.yaml --every 12 --seeds 5 [NAME ...]

Fine-tunes a shipped model with each of the settings of benchmarks/objectives.yaml (or another file; or with those that
are named) on the shipped judge's preference; from each seed once. Every few epochs the tuning captions, on which no
claim is made, are drawn as the arms are, from the same noise. Measured of these images: the held-out judge's score,
alignment (the share of what the captions state that the oracle sees) and diversity (mean cosine distance of features),
each beside that of the model without an adapter. Seconds are of the CPU, of all of fine-tuning but
imports, loading and measuring.

Every run is a line of benchmarks/objectives.jsonl, beside the settings; a run that stands there is not repeated,
unless the judge's weights have changed. Draws
objectives-MODEL.png: for each setting the score over the seconds, or over the judge's answers where settings ask about
some images only, and over what was kept of alignment. A setting may have the `surrogate: tower`: what tells images
apart is then the mean of what the judge's own vision tower sees, in place of photometry.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev

import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t
from transformers import AutoModelForImageTextToText, AutoProcessor

from t2i_feedback import mllm, params
from t2i_feedback.datasets.postcards.captions import caption, is_for_tuning
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.evaluation import extractors, fidelity
from t2i_feedback.evaluation.alignment import Oracle, score
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation import files, paths, photometry
from t2i_feedback.foundation.rows import EpochRow
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.image_models.section import Model
from t2i_feedback.mllm.base import Mllm
from t2i_feedback.reporting.style import STYLE
from t2i_feedback.rewards.mllm import preference
from t2i_feedback.stages import finetune

SETTINGS = Path(__file__).with_suffix(".yaml")
TRAINED, TUNING = 96, 256  # captions: to learn from; to measure with
KEPT = 0.97  # of alignment and of diversity


class Tuning:
    """Captions that are in no data set, and what a model makes of them."""

    def __init__(self, count: int, seed: int, held_out: Mllm, wanted: str):
        self.facts = captions(count, f"tuning {seed}", for_tuning=True)
        self.seed, self.judge = seed, preference(held_out, wanted)
        self.oracle = Oracle.from_pretrained(paths.ORACLE)
        self.extractor = extractors.load("efficientnet-lite0", "cpu", None)

    def measure(self, model) -> dict[str, float]:
        """Of images that are drawn as the arms are, with the adapter that the model has at present."""
        texts, images = list(self.facts), []
        with torch.no_grad(), model.adapter.merged():
            for start in range(0, len(texts), model.settings.batch_size):
                some = range(start, min(start + model.settings.batch_size, len(texts)))
                seeds = [noise_seed(self.seed, "tuning", number) for number in some]
                images += model.draw([texts[number] for number in some], seeds)
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).copy())
        seen = self.oracle.see(pixels.float() / 255)
        answers = [value for value in self.judge(images, texts) if value is not None]
        return {
            "score": fmean(answers),
            "alignment": fmean(score(self.facts[text], one).share for text, one in zip(texts, seen, strict=True)),
            "diversity": fidelity.diversity(features(self.extractor, images, model.settings.width)),
            "brightness": fmean(photometry.means([image])["brightness"] for image in images),
        }


def features(extractor, images: Sequence[Image.Image], side: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        saved = [Path(folder) / f"{number}.png" for number in range(len(images))]
        for image, file in zip(images, saved, strict=True):
            image.save(file)
        return extractors.extract(saved, extractor, side, "crop_lanczos", Image.open).features


def captions(count: int, seed: str, for_tuning: bool) -> dict[str, dict]:
    """Different ones of the training scenes, each with the facts that it states; for tuning, or for everything else."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        text, facts = caption(sample_scene(rng, "train"), rng, "terse")
        if is_for_tuning(text) == for_tuning:
            found[text] = facts.to_json()
    return found


def train(
    p: params.Params, model: Model, settings: dict, every: int, seed: int, judge: Mllm, held_out: Mllm
) -> list[dict]:
    """One run: what was measured before it, every so many epochs, and at its end."""
    config = Finetune(**(p.finetune.model_dump() | {k: v for k, v in settings.items() if k != "surrogate"}))
    learnt = list(captions(TRAINED, f"fine-tuning {seed}", for_tuning=False))
    tuning = Tuning(TUNING, seed, held_out, config.preference)
    image_model = load_image_model(model, training=True)
    parameters = image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, seed)
    curve = [{"epoch": 0, "seconds": 0.0, "asked": 0} | tuning.measure(image_model)]
    started = time.process_time()
    unmeasured, asked = 0.0, 0

    def look(row: EpochRow) -> None:
        nonlocal unmeasured, asked
        now, asked = time.process_time(), asked + row.asked
        if row.epoch % every == 0 or row.epoch == config.epochs:
            with trainer.as_saved():
                measured = tuning.measure(image_model)
            seconds = round(now - started - unmeasured, 1)
            curve.append({"epoch": row.epoch, "seconds": seconds, "asked": asked} | measured)
            print(" ".join(f"{name} {value:.3g}" for name, value in curve[-1].items()), flush=True)
        unmeasured += time.process_time() - now

    with tempfile.TemporaryDirectory() as folder:
        scorer = finetune.scorer(config, model.pixels, seed, judge, {}, Path(folder))
        if settings.get("surrogate") == "tower" and scorer.budget:
            scorer.budget = replace(scorer.budget, embed=tower(p.mllms[config.judge].model))
        trainer = Trainer(
            image_model,
            parameters,
            learnt,
            scorer,
            photometry.means,
            model=model,
            finetune=config,
            seed=seed,
            folder=Path(folder),
        )
        trainer.run(look)
    return curve


def tower(model: str) -> Callable[[list[Image.Image]], np.ndarray]:
    """What a judge's vision tower sees of N images: the mean of its tokens, [N, D]."""
    processor = AutoProcessor.from_pretrained(model)
    judge = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()

    @torch.no_grad()
    def embed(images: list[Image.Image]) -> np.ndarray:
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return judge.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1].mean(1).double().numpy()

    return embed


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help="of settings; all of the model's without any")
    arguments.add_argument("--model", default="models/postcards/sd", help="a model that ships")
    arguments.add_argument("--settings", type=Path, default=SETTINGS, help="a YAML file as benchmarks/objectives.yaml")
    arguments.add_argument("--seeds", type=int, default=1)
    arguments.add_argument("--every", type=int, default=3, help="epochs between measurements")
    arguments.add_argument("--epochs", type=int, help="in place of each setting's own: to try it out")
    given = arguments.parse_args()
    p = params.load()
    known, results = yaml.safe_load(given.settings.read_text())[given.model], given.settings.with_suffix(".jsonl")
    if unknown := [name for name in given.names if name not in known["settings"]]:
        arguments.error(f"{unknown[0]} is not in {given.settings}; there are {', '.join(known['settings'])}")
    model = Model(**(p.model.model_dump() | {"name": given.model} | known["model"]))
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    weights = files.digest(Path(p.mllms[p.finetune.judge].model) / "model.safetensors")[:12]
    for seed in range(given.seeds):
        for name in given.names or known["settings"]:
            settings = known["settings"][name] | ({"epochs": given.epochs} if given.epochs else {})
            run = {"model": given.model, "name": name, "seed": seed, "settings": settings, "judge": weights}
            if any(run.items() <= one.items() for one in done):
                continue
            print(f"{given.model} {name}, seed {seed}", flush=True)
            with tempfile.TemporaryDirectory() as folder:  # of a ledger: no run is answered from another's
                ledger = Path(folder) / "ledger.sqlite"
                with (
                    mllm.connect(p.finetune.judge, p.mllms[p.finetune.judge], ledger) as judge,
                    mllm.connect(p.evaluate.judge, p.mllms[p.evaluate.judge], ledger) as held_out,
                ):
                    done.append(run | {"curve": train(p, model, settings, given.every, seed, judge, held_out)})
            with results.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
    names = given.names or list(known["settings"])
    mine = [
        run
        for run in sorted(done, key=lambda run: names.index(run["name"]) if run["name"] in names else len(names))
        if (run["model"], run["judge"]) == (given.model, weights)
        and run["name"] in names
        and run["settings"] == known["settings"][run["name"]]
    ]
    print(table(mine))
    draw(mine, given.model, given.settings)


def reached(curve: Sequence[dict], goal: float) -> float | None:
    """CPU seconds after which the score is `goal` with enough of alignment and diversity; None: it never is."""
    raw, before = curve[0], curve[0]
    for point in curve[1:]:
        kept = all(point[name] >= KEPT * raw[name] for name in ("alignment", "diversity"))
        if kept and point["score"] >= goal:
            share = (goal - before["score"]) / (point["score"] - before["score"]) if before["score"] < goal else 0.0
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def table(runs: Sequence[dict]) -> str:
    """A line for each setting: medians over the seeds. The goal is the score that the first setting ends with;
    before it the mean difference from that, with its 95 % interval over the seeds (Student's t)."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    goals = {run["seed"]: run["curve"][-1]["score"] for run in runs if run["name"] == names[0]}
    head = "seeds  seconds  answers    score  alignment  diversity  brightness   than the first  seconds to the goal"
    lines = [f"{'':38} {head}"]
    for name in names:
        mine = [run for run in runs if run["name"] == name]
        ends = [(run["curve"][0], run["curve"][-1]) for run in mine]
        times = [reached(run["curve"], goals[run["seed"]]) for run in mine if run["seed"] in goals]
        found = [seconds for seconds in times if seconds is not None]
        others = mine if name != names[0] else []
        less = [run["curve"][-1]["score"] - goals[run["seed"]] for run in others if run["seed"] in goals]
        lines.append(
            f"{name:38} {len(mine):5} {median(end['seconds'] for _, end in ends):8.0f} "
            f"{median(end.get('asked', math.nan) for _, end in ends):8.0f} "
            f"{median(end['score'] - raw['score'] for raw, end in ends):+8.2f} "
            f"{median(end['alignment'] / raw['alignment'] for raw, end in ends):10.3f} "
            f"{median(end['diversity'] / raw['diversity'] for raw, end in ends):10.3f} "
            f"{median(end['brightness'] - raw['brightness'] for raw, end in ends):+11.0f} "
            f"{difference(less):>16} "
            + (f"{median(found):10.0f} ({len(found)} of {len(times)})" if found else f"{'never':>10}")
        )
    return "\n".join(lines)


def difference(values: Sequence[float]) -> str:
    """Mean ± half of its 95 % interval; the mean alone of a single value; a dash of none."""
    if len(values) < 2:
        return "".join(f"{value:+.2f}" for value in values) or "–"
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):+.2f} ± {half:.2f}"


def draw(runs: Sequence[dict], title: str, settings: Path) -> None:
    """Gains of the held-out judge's score over seconds or answers, and over the alignment kept: a line for each run."""
    over = "asked" if any(run["settings"].get("feedback_budget") for run in runs) else "seconds"
    names = list(dict.fromkeys(run["name"] for run in runs))
    colours = dict(zip(names, matplotlib.colormaps["tab10"].colors * 4, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        time_axes, kept_axes = figure.subplots(1, 2, sharey=True)
        for run in runs:
            raw, name = run["curve"][0], run["name"]
            gain = [point["score"] - raw["score"] for point in run["curve"]]
            label = name if run["seed"] == 0 else None
            time_axes.plot([point[over] for point in run["curve"]], gain, color=colours[name], label=label)
            kept = [point["alignment"] / raw["alignment"] for point in run["curve"]]
            kept_axes.plot(kept, gain, color=colours[name], marker="o", markersize=3)
        time_axes.set_title(f"{title}: gain of the held-out judge's score")
        time_axes.set_xlabel("answers of the judge" if over == "asked" else "CPU seconds")
        time_axes.legend(loc="lower right")
        kept_axes.set_xlabel("alignment kept, times the model's own")
        kept_axes.axvline(KEPT, color="#8a8a8a", linestyle=":")
        figure.savefig(settings.with_name(f"{settings.stem}-{Path(title).name}.png"), dpi=150)


if __name__ == "__main__":
    main()
