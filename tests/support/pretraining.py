"""The whole pre-training, script by script, with tiny sizes: the real thing, in seconds."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from unittest import mock

import recipe
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TOWER = {
    "embed_dim": 8,
    "depths": [1, 1, 1],
    "num_heads": [1, 1, 2],
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
LANGUAGE = {
    "steps": 3,
    "batch": 3,
    "pictures": 2,
    "align_steps": 2,
    "drawn_from": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "text": TEXT,
}
TINY = {
    "render": {"scenes": 40, "val_scenes": 10},
    "oracle": {"steps": 3, "batch": 8, "scenes": 40, "widths": [4, 4, 8, 8], "checkpoint_every": 2},
    "labeller": {"steps": 2, "batch": 8, "scenes": 30, "widths": [4, 4, 4, 8], "checkpoint_every": 2},
    "vae": {"steps": 3, "batch": 4, "widths": [4, 4, 8], "encode": 20, "checkpoint_every": 2},
    "decoder": {"steps": 2, "batch": 4, "checkpoint_every": 2},
    "text_encoder": {"steps": 2, "batch": 8, "width": 16, "layers": 1, "captions": 2, "checkpoint_every": 2},
    "unet": {"steps": 3, "batch": 4, "widths": [8, 8, 16], "checkpoint_every": 2},
    "flow": {"steps": 3, "batch": 4, "heads": 1, "layers": 1, "second_width": 8, "captions": 2, "checkpoint_every": 2},
    "draw": {"pictures": 4, "sampling_steps": 2},
    "mllm_tower": {"steps": 3, "batch": 8, "checkpoint_every": 2, "tower": TOWER},
    "judge_tower": {"steps": 2, "batch": 8, "checkpoint_every": 2, "tower": TOWER},
    "mllm_features": {"renders": 20, "variants": 1},
    "judge_features": {"renders": 20, "variants": 1},
    "mllm_language": LANGUAGE | {"text_rows": 1},
    "judge_language": LANGUAGE | {"text_rows": 0},
    "model_card": {"held_out": 10, "captions": 6, "pairs": 4, "questioned": 6},
}
MLLMS = [
    f"{script} --model {name}"
    for name in ("mllm", "judge")
    for script in ("mllm_tower", "mllm_features", "mllm_language")
]
CHAIN = [
    *("render", "oracle oracle", "oracle labeller", "vae vae", "vae decoder", "text_encoder", "unet", "draw"),
    *MLLMS,
    "model_card --new",
    "flow",
    "flow_card --new",
]


def prepare(folder: Path) -> None:
    """Tiny parameters, the product's own (fewer steps), and the card whose tables are filled in."""
    params = yaml.safe_load((REPOSITORY / "pretrain" / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (folder / "pretraining.yaml").write_text(yaml.safe_dump(params))
    product = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    product["model"]["steps"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(product))
    (folder / "profiles").mkdir()
    (folder / "profiles/flow.yaml").write_text((REPOSITORY / "profiles/flow.yaml").read_text())
    card = folder / "models" / "postcards" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text((REPOSITORY / "models" / "postcards" / "README.md").read_text())


def run(folder: Path, command: str) -> str:
    """Run one script as `__main__` in this process (the imports take longer than the work); what it printed."""
    script, *arguments = command.split()
    path = str(REPOSITORY / "pretrain" / f"{script}.py")
    paths = ["--params", str(folder / "pretraining.yaml"), "--root", str(folder)]
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", [path, *arguments, *paths]), contextlib.redirect_stdout(printed):
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


def interrupt(folder: Path, command: str, after: int) -> None:
    """Start a training and break it off before step `after`."""
    steps = recipe.training_steps

    def broken(*arguments):
        for step in steps(*arguments):
            if step == after:
                raise Interrupted
            yield step

    with mock.patch.object(recipe, "training_steps", broken), contextlib.suppress(Interrupted):
        run(folder, command)
