"""The pre-training chain of the image model and the oracle runs from end to end on tiny sizes."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from t2i_feedback.evaluation.alignment import Oracle

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = {
    "render": {"scenes": 40, "val_scenes": 10},
    "oracle": {"steps": 3, "batch": 8, "scenes": 40, "widths": [4, 4, 8, 8], "checkpoint_every": 2},
    "labeller": {"steps": 2, "batch": 8, "scenes": 30, "widths": [4, 4, 4, 8], "checkpoint_every": 2},
    "vae": {"steps": 3, "batch": 4, "widths": [4, 4, 8], "encode": 20, "checkpoint_every": 2},
    "text_encoder": {"steps": 2, "batch": 8, "width": 16, "layers": 1, "captions": 2, "checkpoint_every": 2},
    "unet": {"steps": 3, "batch": 4, "widths": [8, 8, 16], "checkpoint_every": 2},
    "draw": {"pictures": 4, "sampling_steps": 2},
    "measure": {"pictures": 6, "sampling_steps": 2},
}
CHAIN = ("render", "oracle oracle", "oracle labeller", "vae", "text_encoder", "unet", "draw", "measure")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole chain has run."""
    folder = tmp_path_factory.mktemp("pretrain")
    params = yaml.safe_load((REPOSITORY / "pretrain" / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for command in CHAIN:
        run(folder, command)
    return folder


def run(folder: Path, command: str) -> str:
    """Run one script as `__main__` in this process (the imports take longer than the work); what it printed."""
    script, *role = command.split()
    path = str(REPOSITORY / "pretrain" / f"{script}.py")
    printed = io.StringIO()
    arguments = [path, *role, "--params", str(folder / "params.yaml"), "--root", str(folder)]
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(printed):
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()


def test_the_pipeline_loads_and_draws(root: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(root / "models/postcards/sd", dtype=torch.float32)
    image = pipeline("a red house", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64) and bool(image.isfinite().all())


def test_every_sampling_step_has_a_variance(root: Path) -> None:
    scheduler = StableDiffusionPipeline.from_pretrained(root / "models/postcards/sd").scheduler
    scheduler.set_timesteps(20)
    stride = scheduler.config.num_train_timesteps // 20
    assert all(scheduler._get_variance(int(t), int(t) - stride) > 0 for t in scheduler.timesteps)


def test_latents_are_standardised(root: Path) -> None:
    latents = load_file(root / "pretrain/work/latents.safetensors")
    mean, deviation = latents["mean"].float(), latents["deviation"].float()
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(4), atol=0.01, rtol=0)
    torch.testing.assert_close(mean.var((0, 2, 3)) + (deviation**2).mean((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_oracle_and_labeller_are_different_readers(root: Path) -> None:
    oracle = Oracle.from_pretrained(root / "models/postcards/oracle")
    labeller = Oracle.from_pretrained(root / "pretrain/work/labeller")
    assert oracle.widths != labeller.widths
    assert oracle.vocabulary == labeller.vocabulary


def test_drawn_pictures_carry_caption_facts_and_labels(root: Path) -> None:
    rows = json.loads((root / "pretrain/work/drawn/rows.json").read_text())
    assert len(rows) == len(load_file(root / "pretrain/work/drawn/images.safetensors")["images"]) == 4
    assert all({"caption", "facts", "seen"} == set(row) for row in rows)


def test_measurement_covers_both_samplers(root: Path) -> None:
    quality = json.loads((root / "models/postcards/quality_image.json").read_text())
    assert sum("eta" in name for name in quality) == 2
    assert (root / "models/postcards/sample_image.png").exists()


def test_an_interrupted_training_goes_on_from_its_checkpoint(root: Path) -> None:
    assert "unet: 4 pictures" in run(root, "unet")  # one step after the checkpoint at step 2
