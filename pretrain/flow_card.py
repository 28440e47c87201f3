"""Measure the flow model and rewrite its part of the card.

    PYTHONPATH=src python pretrain/flow_card.py          # what is committed must still hold: else exit code 1
    PYTHONPATH=src python pretrain/flow_card.py --new    # after a training: whatever is measured is right

As `model_card.py` measures `sd`: captions of held-out scenes, drawn with the settings of profiles/flow.yaml and read by
the oracle; and the validators on those pictures. Writes, in `models/postcards`: sd3/quality.json, a table of README.md
and sample_flow.png; nothing where a committed figure moved. About two minutes on one core.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from card import fill, moved, table
from drawing import draw, load_pipeline
from measure_image import Captioned, alignments, save_grid, see, summarise
from measure_mllm import Mllm, ask_about, to_pictures, validator_quality
from mllm_questions import VALIDATE
from mllm_recipe import MODELS
from recipe import HERE, Recipe, recipe_section
from render import draw_split

from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.evaluation.alignment import Oracle

ROWS: list[list] = [
    ["background", "background", 0.99, 1],
    ["kind", "kind", 0.93, 0.97],
    ["colour", "colour", 0.93, 0.97],
    ["position given kind (detailed captions)", "column given kind", 0.97, 1],
    ["size given kind (detailed captions)", "size given kind", 0.97, 1],
    ["whole picture right, detailed captions", "whole, detailed", 0.95, 1],
    ["whole picture right, medium captions", "whole, medium", 0.75, 0.9],
    ["whole picture right, terse captions", "whole, terse", 0.55, 0.75],
    ["... if uninvited things did not count", "facts right, ignoring the uninvited, terse"],
    ["uninvited things per picture, detailed captions", "uninvited, detailed", "<=0.05", 0],
    ["uninvited things per picture, terse captions", "uninvited, terse"],
    ["validator `mllm` on these pictures, balanced accuracy", "validator / mllm", 0.85, 0.95],
    ["validator `judge` on these pictures, balanced accuracy", "validator / judge"],
]


def measure(recipe: Recipe, steps: int, guidance: float, tokens: int, grid: Path) -> dict:
    """Every figure of the flow model, drawn with `steps`, `guidance` and `tokens` of max_sequence_length."""
    p = recipe.params
    oracle = Oracle.from_pretrained(recipe.models / "oracle")
    _, scenes = draw_split("val", p["held_out"], p["seed"])
    captions = Captioned.sample(scenes, p["captions"], p["seed"])
    pipeline = load_pipeline(recipe.models / "sd3")
    drawn = draw(pipeline, captions.texts, steps, guidance, p["seed"], max_sequence_length=tokens)
    save_grid(drawn, captions.texts, grid)
    found: dict = summarise(captions.levels, alignments(oracle, drawn, captions.facts))
    asked = list(zip(captions.texts, captions.facts, strict=True))
    shown = [Scene.from_json(facts) for facts in see(oracle, drawn)]
    questions, pictures = ask_about(shown, p["seed"], asked), to_pictures(drawn / 255)
    found["validator"] = {}
    for name in MODELS:
        answers = Mllm.load(recipe.models / name).p_yes(
            [VALIDATE.format(text) for text in questions.caption], questions.about(pictures)
        )
        found["validator"][name] = validator_quality(questions, np.asarray(answers))["balanced_accuracy"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=HERE / "params.yaml", help="parameters of the pre-training")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="root of everything that is read and written")
    parser.add_argument("--new", action="store_true", help="do not compare with the committed figures")
    arguments = parser.parse_args()
    recipe = recipe_section(arguments.params, arguments.root, "model_card")
    torch.set_num_threads(1)
    model = yaml.safe_load((arguments.root / "params.yaml").read_text())["model"]
    model |= yaml.safe_load((arguments.root / "profiles/flow.yaml").read_text())["model"]
    committed, card = recipe.models / "sd3/quality.json", recipe.models / "README.md"
    fresh = recipe.models / "sample_flow.new.png"
    figures = measure(recipe, model["steps"], model["guidance"], model["max_sequence_length"], fresh)
    if committed.exists() and not arguments.new:
        old = json.loads(committed.read_text())
        if problems := moved(old, figures, recipe.params["tolerance"], tuned=False):
            fresh.unlink()
            sys.exit("\n".join(problems))
    fresh.replace(recipe.models / "sample_flow.png")
    committed.write_text(json.dumps(figures, indent=1) + "\n")
    settings = f"{model['steps']} steps, guidance {model['guidance']:g}"
    card.write_text(fill(card.read_text(), {"flow": table({"flow": figures}, {settings: "flow"}, ROWS)}))
    print(f"{card}: the flow model's table")


if __name__ == "__main__":
    main()
