"""The pre-training of the image model, the oracle and the card runs from end to end on tiny sizes."""

import json
from pathlib import Path

import pytest
import torch
from card import fill, moved
from diffusers import StableDiffusionPipeline
from pretraining import interrupt, run
from safetensors.torch import load_file

from t2i_feedback.evaluation.alignment import Oracle


def test_the_pipeline_loads_and_draws(pretrained: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pretrained / "models/postcards/sd", dtype=torch.float32)
    image = pipeline("a red house", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64) and bool(image.isfinite().all())


def test_every_sampling_step_has_a_variance(pretrained: Path) -> None:
    scheduler = StableDiffusionPipeline.from_pretrained(pretrained / "models/postcards/sd").scheduler
    scheduler.set_timesteps(20)
    stride = scheduler.config.num_train_timesteps // 20
    assert all(scheduler._get_variance(int(t), int(t) - stride) > 0 for t in scheduler.timesteps)


def test_latents_are_standardised(pretrained: Path) -> None:
    latents = load_file(pretrained / "pretrain/work/latents.safetensors")
    mean, deviation = latents["mean"].float(), latents["deviation"].float()
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(4), atol=0.01, rtol=0)
    torch.testing.assert_close(mean.var((0, 2, 3)) + (deviation**2).mean((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_oracle_and_labeller_are_different_readers(pretrained: Path) -> None:
    oracle = Oracle.from_pretrained(pretrained / "models/postcards/oracle")
    labeller = Oracle.from_pretrained(pretrained / "pretrain/work/labeller")
    assert oracle.widths != labeller.widths
    assert oracle.vocabulary == labeller.vocabulary


def test_drawn_pictures_carry_caption_facts_and_labels(pretrained: Path) -> None:
    rows = json.loads((pretrained / "pretrain/work/drawn/rows.json").read_text())
    assert len(rows) == len(load_file(pretrained / "pretrain/work/drawn/images.safetensors")["images"]) == 4
    assert all({"caption", "facts", "seen"} == set(row) for row in rows)


def test_the_decoder_goes_on_and_the_encoder_stays(pretrained: Path) -> None:
    before, after = (
        load_file(pretrained / "pretrain/work" / name / "diffusion_pytorch_model.safetensors")
        for name in ("vae", "decoder")
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


def test_the_card_is_filled_with_what_was_measured(pretrained: Path) -> None:
    quality = json.loads((pretrained / "models/postcards/quality.json").read_text())
    assert {"eta 0", "eta 1", "detailed prompts"} < set(quality["image"])
    assert set(quality["mllm"]) == {"mllm", "judge", "between the judges"}
    card = (pretrained / "models/postcards/README.md").read_text()
    assert f"{quality['mllm']['mllm']['pictures per second']:.3f}" in card
    assert (pretrained / "models/postcards/sample_image.png").exists()
    assert (pretrained / "models/postcards/reliability.png").exists()


def test_measuring_the_same_models_again_finds_the_same_figures(pretrained: Path) -> None:
    assert "README.md" in run(pretrained, "model_card")  # it ends with an error where a figure moved


def test_a_committed_figure_that_no_longer_holds_is_named() -> None:
    old = {"image": {"kind": 0.9, "colour": 0.8, "gone": 0.5}, "pictures per second": 100.0}
    new = {"image": {"kind": 0.88, "colour": 0.7}, "pictures per second": 10.0}
    assert [line.split(":")[0] for line in moved(old, new, 0.03, tuned=True)] == ["image / colour", "image / gone"]


def test_a_figure_that_is_no_number_does_not_hold() -> None:
    assert moved({"kind": 0.9}, {"kind": float("nan")}, 0.03, tuned=True)


def test_figures_of_a_fine_tuned_model_hold_where_none_was_measured() -> None:
    old = {"image": {"fine-tuned 1": {"kind": 0.9}}}
    assert not moved(old, {}, 0.03, tuned=False)
    assert moved(old, {}, 0.03, tuned=True)


def test_a_card_is_left_alone_where_a_figure_moved(pretrained: Path) -> None:
    committed = pretrained / "models/postcards/quality.json"
    before = committed.read_text()
    quality = json.loads(before)
    quality["image"]["eta 0"]["background"] += 0.5
    committed.write_text(json.dumps(quality))
    with pytest.raises(SystemExit, match="eta 0 / background"):
        run(pretrained, "model_card")
    assert json.loads(committed.read_text()) == quality
    committed.write_text(before)


def test_a_card_without_a_place_for_its_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="'image'"):
        fill("no place", {"image": "figures"})


def test_an_interrupted_training_ends_as_an_uninterrupted_one(pretrained: Path) -> None:
    weights = pretrained / "models/postcards/sd/unet/diffusion_pytorch_model.safetensors"
    uninterrupted = load_file(weights)
    weights.unlink()
    interrupt(pretrained, "unet", after=2)
    assert "unet: 4 pictures" in run(pretrained, "unet")  # one step after the checkpoint at step 2
    for name, tensor in load_file(weights).items():
        torch.testing.assert_close(tensor, uninterrupted[name], atol=0, rtol=0)


def test_a_finished_training_starts_afresh(pretrained: Path) -> None:
    assert "text_encoder: 16 pictures" in run(pretrained, "text_encoder")
