"""Memory reckoned on fake tensors: the networks are the published ones, and every switch saves what it says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i_feedback.tools.reckoning import memory
from t2i_feedback.tools.reckoning.networks import CHECKPOINTS
from t2i_feedback.tools.reckoning.published import Setup

pytestmark = pytest.mark.slow  # imports all that the trainer does

REPOSITORY = Path(__file__).parents[3]
LIMIT = 10.0  # GB, of ddpo-pytorch's README: benchmarks/memory.py


@pytest.fixture(scope="module", autouse=True)
def _in_the_repository() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        yield


@pytest.fixture(scope="module")
def small() -> Setup:
    """SD 3.5 medium with two of its layers, a small VAE, and no T5."""
    setup = Setup.of("sd35").without("text_encoder_3")
    changes = {
        "vae": {"block_out_channels": (32,) * 4},
        "transformer": {"num_layers": 2, "dual_attention_layers": (0,)},
    }
    parts = {name: part.changed(changes.get(name, {})) for name, part in setup.checkpoint.parts.items()}
    return replace(setup, checkpoint=replace(setup.checkpoint, parts=parts), known={})


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "sd3"])
def test_every_part_has_as_many_numbers_as_the_published_one(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    assert checkpoint.parts.keys() == checkpoint.parameters.keys()
    for part, published in checkpoint.parameters.items():
        module = checkpoint.part(part, torch.bfloat16)
        stored = [*module.parameters(), *(b for n, b in module.named_buffers() if n in module.state_dict())]
        assert sum(tensor.numel() for tensor in stored) == published, part


def test_a_t5_keeps_from_float16_what_transformers_keeps_from_it() -> None:
    checkpoint = CHECKPOINTS["sd35"]
    half, brain = (checkpoint.part("text_encoder_3", dtype) for dtype in (torch.float16, torch.bfloat16))
    kept = {name for name, weight in half.named_parameters() if weight.dtype == torch.float32}
    assert kept and all(".wo." in name for name in kept)
    assert {weight.dtype for weight in brain.parameters()} == {torch.bfloat16}


def test_checkpointing_keeps_less_for_the_backward_pass_and_changes_nothing_else(
    small: Setup,
) -> None:
    kept, again = (memory.training(small, checkpointing=on) for on in (False, True))
    assert again.saved < 0.5 * kept.saved
    assert again.peak < kept.peak
    assert (again.weights, again.adapter, again.moments) == (kept.weights, kept.adapter, kept.moments)


def test_moments_are_two_numbers_for_each_that_is_trained(small: Setup) -> None:
    found = memory.training(small, checkpointing=True)
    assert found.moments == pytest.approx(2 * found.adapter, rel=1e-3)  # and a count of steps for each tensor
    assert memory.moments_in_bytes(small) < 0.3 * found.moments


def test_what_rests_takes_no_memory_while_the_network_updates(small: Setup) -> None:
    resting, all_there = (memory.whole_run(small.changed("model", offload=on)) for on in (True, False))
    away = sum(small.sizes[name] for name in small.resting)
    assert all_there["update"] - resting["update"] == pytest.approx(away / 1e9)
    assert resting["decoding"] < all_there["decoding"]


def test_a_batch_decoded_one_by_one_takes_less(small: Setup) -> None:
    whole, sliced = (memory.drawing(small.changed("model", vae_slicing=on), 4)["vae"] for on in (False, True))
    assert sliced < whole


def test_fewer_bits_save_most_of_the_networks_weights(small: Setup) -> None:
    weights = small.sizes["transformer"] / 1e9
    eight, four = (memory.saved_by(small, bits) for bits in ("8bit", "4bit"))
    assert 0 < eight < 0.5 * weights
    assert four / eight == pytest.approx((2 - 0.5625) / 1)


def test_drawing_sd3_takes_what_hugging_face_measured() -> None:
    """18.765 GB at its defaults, 1024 pixels and one image in float16, on an A100: huggingface.co/blog/sd3."""
    setup = Setup.of("sd3").changed("model", size=1024, vae_dtype="same", vae_slicing=False)
    reckoned = sum(setup.sizes.values()) + memory.beyond_weights(setup, "vae", 1)
    assert reckoned / 1e9 == pytest.approx(18.765, rel=0.03)


# ------------------------------------------------------------------------------------------------ SD 1.5


@pytest.fixture(scope="module")
def sd15() -> Setup:
    return Setup.of("sd15")


@pytest.fixture(scope="module")
def steps(sd15: Setup) -> dict[bool, Any]:
    """A training step at batch 1, without and with gradient checkpointing."""
    return {checkpointing: memory.training(sd15, checkpointing=checkpointing) for checkpointing in (False, True)}


def test_lora_training_fits_10_gb_at_batch_1(steps: dict[bool, Any]) -> None:
    assert steps[False].peak < LIMIT - memory.RESERVED
    assert steps[True].peak < LIMIT - memory.RESERVED


def test_a_step_counts_weights_in_half_precision_the_adapter_in_float32_and_adams_two_moments(
    sd15: Setup, steps: dict[bool, Any]
) -> None:
    for step in steps.values():
        assert step.weights == pytest.approx(sum(sd15.checkpoint.parameters.values()) * 2 / 1e9, rel=0.001)
        assert step.adapter == pytest.approx(797_184 * 4 / 1e9)
        assert step.moments == pytest.approx(2 * step.adapter, rel=0.01)
        assert step.peak > step.weights + step.adapter + step.saved


def test_gradient_checkpointing_keeps_a_fraction_of_the_activations(steps: dict[bool, Any]) -> None:
    """Also in evaluation mode, in which the UNet is trained."""
    assert steps[True].saved < 0.25 * steps[False].saved
    assert steps[True].peak < 0.7 * steps[False].peak


def test_every_live_byte_is_counted_and_none_that_is_gone() -> None:
    with memory.counting() as count:
        kept = torch.zeros(250)
        view = kept[:10].view(2, 5)
        torch.ones(1000)
        assert (count.now, count.peak) == (1000, 5000)
        del kept
        assert count.now == 1000  # the view still holds it
        del view
        assert count.now == 0
