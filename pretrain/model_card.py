"""Measure the embedded models and rewrite their card: figures, tables, pictures.

    make model-card                                          # what is committed must still hold: else exit code 1
    PYTHONPATH=src python pretrain/model_card.py --new       # after a training: whatever is measured is right

Needs the committed models only, and, for pictures of a fine-tuned model, the adapter of the default run (`--adapter
models/lora`, made by `dvc repro finetune`). All is measured on held-out scenes, rendered or drawn here; the validator's
threshold is chosen on training scenes. Writes, in `models/postcards`: quality.json, the tables of README.md,
sample_image.png, reliability.png; nothing where a committed figure moved.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
import torch
import yaml
from card import MOVING, fill, flatten, moved, tables
from drawing import draw, load_pipeline
from matplotlib import pyplot
from measure_image import (
    Captioned,
    alignments,
    measure_detail,
    measure_reading,
    save_grid,
    see,
    stages_of_finetuning,
    summarise,
)
from measure_mllm import (
    HALF,
    Asked,
    Mllm,
    ask_about,
    ask_left_or_right,
    best_threshold,
    enhance_quality,
    feedback_quality,
    preference_quality,
    question_wise_quality,
    speed,
    steadiness,
    sweep_quality,
    to_pictures,
    validator_quality,
)
from mllm_questions import VALIDATE
from mllm_recipe import MODELS
from mllm_style import restyle
from recipe import HERE, Recipe, recipe_section
from render import draw_split
from scipy.stats import pearsonr
from torch import Generator, Tensor

from t2i_feedback.calibration import discrimination
from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.evaluation.alignment import Oracle

GRID_PICTURE, RELIABILITY_PICTURE = "sample_image.png", "reliability.png"
MINUTES = 8  # on two cores, the fine-tuned model included

Answers = dict[
    tuple[str, str], tuple[list[float], list[float]]
]  # (model, look) -> P(yes) of true and of false captions


def measure(recipe: Recipe, model: dict, adapter: Path | None, pictures_to: Path) -> dict:
    """Every figure; `model` is the section of the same name in the product's params.yaml (steps, guidance).

    Pictures for the card are left in `pictures_to`.
    """
    p = recipe.params | {"steps": model["steps"], "guidance": model["guidance"]}
    seed = p["seed"]
    oracle = Oracle.from_pretrained(recipe.models / "oracle")
    pictures, scenes = draw_split("val", p["held_out"], seed)
    renders = torch.from_numpy(pictures)
    pipeline = load_pipeline(recipe.models / "sd")
    captions = Captioned.sample(scenes, p["captions"], seed)
    image: dict[str, dict] = measure_reading(oracle, pipeline.vae, renders, scenes, seed)
    drawn = {}
    for eta in (0.0, 1.0):
        drawn[eta] = draw(pipeline, captions.texts, p["steps"], p["guidance"], seed, eta=eta)
        image[f"eta {eta:g}"] = summarise(captions.levels, alignments(oracle, drawn[eta], captions.facts))
    save_grid(drawn[0.0], captions.texts, pictures_to / GRID_PICTURE)
    image["detailed prompts"] = measure_detail(oracle, pipeline, scenes, p)
    sets = {"drawn": drawn[0.0]}
    for share, tuned in (stages_of_finetuning(pipeline, adapter, captions, p) if adapter else {}).items():
        sets[f"fine-tuned {share:g}"] = tuned
        image[f"fine-tuned {share:g}"] = summarise(captions.levels, alignments(oracle, tuned, captions.facts))
    shown = {name: [Scene.from_json(facts) for facts in see(oracle, pixels)] for name, pixels in sets.items()}
    mllms, answers = measure_mllms(recipe, p, renders, scenes, sets, shown, captions)
    plot_reliability(answers, pictures_to / RELIABILITY_PICTURE)
    return {"image": image, "mllm": mllms}


def measure_mllms(
    recipe: Recipe,
    p: dict,
    renders: Tensor,
    scenes: list[Scene],
    drawn: dict[str, Tensor],
    shown: dict[str, list[Scene]],
    captions: Captioned,
) -> tuple[dict, Answers]:
    """Both models on held-out renders, on restyled ones, and on pictures that the image model drew.

    Returns the figures, and what the reliability plot shows.
    """
    seed, count = p["seed"], p["questioned"]
    plain, scenes = renders[:count] / 255, scenes[:count]
    styled = restyle(plain, Generator().manual_seed(seed))
    rows = ask_about(scenes, seed)
    looks = {"renders": (rows, to_pictures(plain)), "restyled": (rows, to_pictures(styled))}
    looks["left or right"] = (ask_left_or_right(scenes, seed), looks["renders"][1])
    asked = list(zip(captions.texts, captions.facts, strict=True))
    for name, pixels in drawn.items():
        looks[name] = (ask_about(shown[name], seed, asked), to_pictures(pixels / 255))
    trained, trained_scenes = draw_split("train", count, seed)
    trained_rows = ask_about(trained_scenes, seed)
    quality: dict[str, dict] = {}
    errors, wrong = [], []
    answers: Answers = {}
    for name in MODELS:
        mllm = Mllm.load(recipe.models / name)
        found: dict = {"validator": {}, "preference": {}}
        for look, (questions, pictures) in looks.items():
            p_yes = ask(mllm, questions, pictures)
            found["validator"][look] = validator_quality(questions, p_yes)
            if look == "renders":
                wrong.append(((p_yes >= HALF) != questions.true).astype(float))
                found["steadiness"] = steadiness(mllm, questions, pictures, p_yes)
            if look in ("renders", "drawn"):
                answers[name, look] = (p_yes[questions.true].tolist(), p_yes[~questions.true].tolist())
        found["threshold on training scenes"] = best_threshold(
            trained_rows, ask(mllm, trained_rows, to_pictures(torch.from_numpy(trained) / 255))
        )
        found["preference"]["restyled"], missed = preference_quality(mllm, styled)
        errors.append(missed)
        for look, pixels in drawn.items():
            found["preference"][look] = preference_quality(mllm, pixels / 255)[0]["paper"]
        found["sweeps ranked rightly"] = sweep_quality(mllm, plain[:40])
        found["feedback"] = feedback_quality(mllm, rows, scenes, looks["renders"][1])
        if name == "mllm":
            found["enhancement"] = enhance_quality(mllm, scenes, seed)
            found["question by question"] = question_wise_quality(mllm, *looks["renders"])
        found[MOVING] = speed(mllm, looks["restyled"][1])
        quality[name] = found
    quality["between the judges"] = {
        "r of preference errors": round(float(pearsonr(*errors)[0]), 4),
        "r of validator errors": round(float(pearsonr(*wrong)[0]), 4),
    }
    return quality, answers


def ask(mllm: Mllm, rows: Asked, pictures: list) -> np.ndarray:
    """P(yes) of every row, in the words of the product's validator."""
    return mllm.p_yes([VALIDATE.format(text) for text in rows.caption], rows.about(pictures))


def plot_reliability(answers: Answers, path: Path) -> None:
    """Share of true captions against P(yes), for both models, on renders and on drawn pictures.

    `answers` are P(yes) of true and of false captions by model and look; both kinds weigh alike.
    """
    matplotlib.use("agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4), sharey=True, layout="constrained")
    for axis, look in zip(axes, ("renders", "drawn"), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name in MODELS:
            bins = discrimination.reliability(*answers[name, look])
            count = sum(b.count for b in bins)
            axis.plot(
                [b.stated for b in bins], [b.observed for b in bins], marker="o", label=f"{name} ({count} captions)"
            )
        axis.set(title=f"{look} pictures" if look == "drawn" else look, xlabel="P(yes)")
        axis.legend()
    axes[0].set_ylabel("share of true captions")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=HERE / "params.yaml", help="parameters of the pre-training")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="root of everything that is read and written")
    parser.add_argument("--adapter", type=Path, help="folder of a fine-tuned adapter: measure its pictures as well")
    parser.add_argument("--new", action="store_true", help="do not compare with the committed figures")
    arguments = parser.parse_args()
    if arguments.adapter and not arguments.adapter.is_dir():
        parser.error(f"{arguments.adapter} is missing: `dvc repro finetune` makes the adapter of the default run")
    recipe = recipe_section(arguments.params, arguments.root, "model_card")
    print(f"model_card: about {MINUTES} minutes on two cores", flush=True)
    torch.set_num_threads(2)
    model = yaml.safe_load((arguments.root / "params.yaml").read_text())["model"]
    committed, card = recipe.models / "quality.json", recipe.models / "README.md"
    with TemporaryDirectory(dir=recipe.models) as folder:
        quality = measure(recipe, model, arguments.adapter, Path(folder))
        if committed.exists() and not arguments.new:
            old = json.loads(committed.read_text())
            if problems := moved(old, quality, recipe.params["tolerance"], tuned=bool(arguments.adapter)):
                sys.exit("\n".join(problems))
        for name in (GRID_PICTURE, RELIABILITY_PICTURE):
            (Path(folder) / name).replace(recipe.models / name)
    committed.write_text(json.dumps(quality, indent=1) + "\n")
    card.write_text(fill(card.read_text(), tables(quality)))
    print(f"{card}: {len(flatten(quality))} figures")


if __name__ == "__main__":
    main()
