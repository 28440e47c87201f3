"""What the pre-training scripts share: the command line, the progress bar, the learning rate, the checkpoints."""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FREE = ("steps", "decay", "pictures_per_second")  # what an interrupted training may be given anew and still go on


@dataclass(frozen=True)
class Recipe:
    """One script's parameters and the folder (the repository's root, or a test's) that its paths start from."""

    section: str
    params: dict
    root: Path

    @property
    def work(self) -> Path:
        """Intermediate data: tracked by DVC, not committed."""
        return self.root / "pretrain" / "work"

    @property
    def models(self) -> Path:
        """What is committed and shipped."""
        return self.root / "models" / "postcards"

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training goes on from; other parameters start afresh, and so does a finished one."""
        fixed = {key: value for key, value in self.params.items() if key not in FREE}
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]
        return self.root / ".cache" / "pretrain" / f"{self.section}-{digest}.pt"


def read_recipe(description: str | None, section: str) -> Recipe:
    """Parse `--params FILE --root DIR` and pick one section. One thread each, so that two trainings fit two cores."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=HERE / "params.yaml", help="parameters of all scripts")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="root of everything that is read and written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return recipe_section(arguments.params, arguments.root, section)


def recipe_section(params: Path, root: Path, section: str) -> Recipe:
    """One section of a params.yaml."""
    return Recipe(section, yaml.safe_load(params.read_text())[section], root)


def training_steps(recipe: Recipe, first: int = 0) -> Iterator[int]:
    """Steps `first` to `steps` under a progress bar in pictures/s; the expected time is printed first."""
    steps, batch, speed = (recipe.params[key] for key in ("steps", "batch", "pictures_per_second"))
    minutes = (steps - first) * batch / speed / 60
    print(f"{recipe.section}: {(steps - first) * batch} pictures, about {minutes:.1f} minutes on one core", flush=True)
    bar = tqdm(initial=first * batch, total=steps * batch, desc=recipe.section, unit="picture", mininterval=10)
    with bar:
        for step in range(first, steps):
            yield step
            bar.update(batch)


def cosine(step: int, steps: int, peak: float, warm_up: int = 60) -> float:
    """Learning rate: linear warm-up, then half a cosine down to 1 % of the peak."""
    return peak * min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def trapezoid(step: int, steps: int, peak: float, decay: float = 0.3, warm_up: int = 60) -> float:
    """Learning rate: linear warm-up, constant, and over the last `decay` of the steps linearly down to 1 %.

    Before the decay it does not depend on `steps`: a longer training begins as a shorter one did.
    """
    left = (steps - step) / (decay * steps)
    return peak * min(1.0, (step + 1) / warm_up, 0.01 + 0.99 * left)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; a parameter group's `scale` multiplies it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors and numbers so that an interruption never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def forget_checkpoint(path: Path) -> None:
    """After a training's end: with new inputs or new code, the next one must not find its work done."""
    path.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict | None:
    """The last saved state, or None if training has not begun."""
    return torch.load(path, weights_only=True) if path.exists() else None
