"""Does it pay to choose whose opinion to ask? DDPO with all answers of the user against half of them.

    python benchmarks/active_learning.py

Fine-tunes the shipped models on the shipped MLLM judge's real scores, SEEDS times each with finetune.acquisition all,
random and uncertainty; the last two may ask about half of the images. After every epoch the same held-out prompts are
drawn from the same noise and scored in full by the judge and by the held-out judge, so that what was asked about plays
no part in what is shown. Then all answers of the `all` runs are looked at again: how like the advantages that they give
(cosine) are those that the acquisitions make of half and a quarter of them?

Writes benchmarks/active_learning.png and .json. `--epochs 2 --seeds 1` tries it out.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import torch
from matplotlib.figure import Figure
from PIL import Image

from t2i_feedback import mllm, params
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.finetuning.acquisition import Budget, Scorer
from t2i_feedback.finetuning.advantages import advantages
from t2i_feedback.finetuning.scores import from_reward
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation import photometry
from t2i_feedback.foundation.rows import EpochRow
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.mllm.base import Mllm
from t2i_feedback.reporting.style import STYLE
from t2i_feedback.rewards.mllm import preference
from t2i_feedback.stages import finetune

RESULT = Path("benchmarks/active_learning.json")
IMAGE = RESULT.with_suffix(".png")
ACQUISITIONS = ("all", "random", "uncertainty")
COLOURS = {"all": "#666666", "random": "#E69F00", "uncertainty": "#0072B2"}
EPOCHS, SEEDS = 10, 3
PROMPTS, WATCHED = 96, 32  # to train on; to evaluate with
SETTING = {  # half of the default's images, so that it takes minutes; groups as large
    "prompts_per_epoch": 4,
    "images_per_prompt": 8,
    "updates_per_epoch": 2,
    "objective": "ddpo",
    "guidance": None,
    "timestep_share": 1.0,
    "learning_rate": 0.001,
    "max_kl": None,
    "max_held_out_drop": None,
}


@dataclass
class Run:
    acquisition: str
    seed: int
    calls: list[int] = field(default_factory=lambda: [0])  # of the user, by the end of each epoch, from epoch 0
    judge: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


@dataclass
class Answers:
    """All that an epoch's images are worth to the user."""

    images: list[Image.Image]
    prompts: list[str]
    scores: list[float | None]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--epochs", type=int, default=EPOCHS)
    arguments.add_argument("--seeds", type=int, default=SEEDS)
    given = arguments.parse_args()
    p = params.load()
    runs: list[Run] = []
    answers: list[list[Answers]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.sqlite"
        with (
            mllm.connect(p.finetune.judge, p.mllms[p.finetune.judge], ledger) as judge,
            mllm.connect(p.evaluate.judge, p.mllms[p.evaluate.judge], ledger) as held_out,
        ):
            for seed in range(given.seeds):
                for acquisition in ACQUISITIONS:
                    run, kept = train(p, acquisition, seed, given.epochs, judge, held_out)
                    runs.append(run)
                    if acquisition == "all":
                        answers.append(kept)
                    print(
                        f"seed {seed} {acquisition:12s} {run.calls[-1]:5d} calls, held-out judge "
                        f"{run.held_out[0]:.2f} -> {run.held_out[-1]:.2f}, judge {run.judge[0]:.2f} -> "
                        f"{run.judge[-1]:.2f}  ({time.monotonic() - started:.0f} s)",
                        flush=True,
                    )
    figures = summary(runs) | {f"cosine {name}": value for name, value in replayed(answers).items()}
    for name, value in figures.items():
        print(f"{name:52s} {value:8.3f}")
    RESULT.write_text(json.dumps({"figures": figures, "runs": [vars(run) for run in runs]}, indent=2) + "\n")
    draw(runs)
    print(f"{IMAGE}, {RESULT}; {time.monotonic() - started:.0f} s")


def train(
    p: params.Params, acquisition: str, seed: int, epochs: int, judge: Mllm, held_out: Mllm
) -> tuple[Run, list[Answers]]:
    """One run, and everything that the user said in it."""
    per_epoch = SETTING["prompts_per_epoch"] * SETTING["images_per_prompt"]
    choice = {"acquisition": acquisition, "feedback_budget": None if acquisition == "all" else per_epoch // 2}
    config = Finetune(**(p.finetune.model_dump() | SETTING | choice | {"epochs": epochs}))
    prompts, watched = captions(PROMPTS, seed), captions(WATCHED, 1000 + seed)
    run, kept = Run(acquisition, seed), []
    score = [preference(who, config.preference) for who in (judge, held_out)]
    model = load_image_model(p.model, training=True)
    parameters = model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, seed)

    def look() -> None:
        """Score the watched prompts, always from the same noise."""
        images = []
        for start in range(0, WATCHED, p.model.batch_size):
            some = range(start, min(start + p.model.batch_size, WATCHED))
            seeds = [noise_seed(seed, "watched", number) for number in some]
            images += model.draw([watched[number] for number in some], seeds)
        for scores, reward in zip((run.judge, run.held_out), score, strict=True):
            scores.append(fmean(value for value in reward(images, watched) if value is not None))

    def keep(row: EpochRow) -> None:
        run.calls.append(run.calls[-1] + row.asked)
        look()

    with tempfile.TemporaryDirectory() as folder:
        scorer = finetune.scorer(config, p.model.pixels, seed, judge, {}, Path(folder))
        asked = scorer.rewards["preference"]

        def remembered(images: list[Image.Image], texts: list[str]) -> Sequence[float | None]:
            found = asked(images, texts)
            kept.append(Answers(images, texts, list(found)))
            return found

        scorer.rewards = {"preference": remembered}
        look()
        Trainer(
            model,
            parameters,
            prompts,
            scorer,
            photometry.means,
            model=p.model,
            finetune=config,
            seed=seed,
            folder=Path(folder),
        ).run(keep)
    return run, kept


def captions(count: int, seed: int) -> list[str]:
    """Different ones, of scenes of this seed."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[caption(sample_scene(rng), rng, "terse")[0]] = None
    return list(found)


def replayed(answers: Sequence[Sequence[Answers]]) -> dict[str, float]:
    """Mean cosine between the advantages of all answers and those that each acquisition makes of some of them."""
    found = {}
    for acquisition in ("random", "uncertainty"):
        for share in (2, 4):
            for weight in (1.0, 0.0):
                cosines = [
                    cosine
                    for seed, epochs in enumerate(answers)
                    for cosine in likeness(epochs, acquisition, share, weight, seed)
                ]
                name = f"{acquisition}, 1/{share} of the calls, surrogate_weight {weight:g}"
                found[name] = fmean(cosines)
    return found


def likeness(epochs: Sequence[Answers], acquisition: str, share: int, weight: float, seed: int) -> list[float]:
    """The cosine of every epoch."""
    present: dict[int, float | None] = {}
    budget = Budget(len(epochs[0].scores) // share, acquisition, weight, True, photometry.embeddings, seed)
    scorer = Scorer(lambda images, prompts: [present[id(image)] for image in images], budget=budget)
    cosines = []
    for number, epoch in enumerate(epochs):
        present = {id(image): score for image, score in zip(epoch.images, epoch.scores, strict=True)}
        mine = scorer.scores(number, epoch.images, epoch.prompts)
        found, truth = (
            advantages(values, epoch.prompts, per_prompt=True, clip=5.0, weights=weights).values
            for values, weights in ((mine.values, mine.weights), (from_reward(epoch.scores), None))
        )
        cosines.append(float(torch.nn.functional.cosine_similarity(found.nan_to_num(), truth.nan_to_num(), dim=0)))
    return cosines


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Gains of the judges' scores by acquisition (mean over seeds of the last two epochs less epoch 0), and the calls
    after which the mean curve of the held-out judge is where that of `all` ends (-1 = it never is).
    """
    found: dict[str, float] = {}
    goal = fmean(fmean(run.held_out[-2:]) for run in runs if run.acquisition == "all")
    for acquisition in ACQUISITIONS:
        mine = [run for run in runs if run.acquisition == acquisition]
        for name in ("held_out", "judge"):
            gains = [fmean(getattr(run, name)[-2:]) - getattr(run, name)[0] for run in mine]
            found[f"{acquisition}: gain of {name}"] = fmean(gains)
            if len(gains) > 1:
                found[f"{acquisition}: gain of {name}, standard error"] = stdev(gains) / len(gains) ** 0.5
        curve = [fmean(scores) for scores in zip(*(run.held_out for run in mine), strict=True)]
        reached = (calls for calls, score in zip(mine[0].calls, curve, strict=True) if score >= goal)
        found[f"{acquisition}: calls"] = mine[0].calls[-1]
        found[f"{acquisition}: calls to the score that all ends with"] = next(reached, -1)
    return found


def draw(runs: Sequence[Run]) -> None:
    """Scores of the watched prompts over the user's answers: the mean of the seeds, and each seed in faint."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        for axes, name, title in zip(
            figure.subplots(1, 2), ("held_out", "judge"), ("Held-out judge", "The judge that was asked"), strict=True
        ):
            for acquisition in ACQUISITIONS:
                mine = [run for run in runs if run.acquisition == acquisition]
                for run in mine:
                    axes.plot(run.calls, getattr(run, name), color=COLOURS[acquisition], alpha=0.25, linewidth=0.8)
                means = [fmean(scores) for scores in zip(*(getattr(run, name) for run in mine), strict=True)]
                axes.plot(mine[0].calls, means, color=COLOURS[acquisition], marker="o", label=acquisition)
            axes.set_title(f"{title}, 1 to 10")
            axes.set_xlabel("images that the user was asked about")
            axes.legend(loc="lower right")
        figure.savefig(IMAGE, dpi=150)


if __name__ == "__main__":
    main()
