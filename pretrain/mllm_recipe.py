"""The command line of the MLLM scripts: which of the two models, and where things are."""

import argparse
from pathlib import Path

import torch
from recipe import HERE, Recipe, recipe_section

MODELS = ("mllm", "judge")


def read_model_recipe(description: str | None, part: str) -> Recipe:
    """Parse `--model mllm|judge --params FILE --root DIR` and pick the section `{model}_{part}`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True, help="the working MLLM or the held-out judge")
    parser.add_argument("--params", type=Path, default=HERE / "params.yaml", help="parameters of all scripts")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="root of everything that is read and written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return recipe_section(arguments.params, arguments.root, f"{arguments.model}_{part}")
