"""Memory reckoned on fake tensors: the networks are the published ones, and every switch saves what it says."""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

pytestmark = pytest.mark.slow  # imports all that the trainer does

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """Imports a program of benchmarks/, which is no package, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        patch.chdir(REPOSITORY)
        yield importlib.import_module


@pytest.fixture(scope="module")
def memory(benchmark: Any) -> ModuleType:
    return benchmark("memory")


@pytest.fixture(scope="module")
def small(memory: ModuleType) -> Any:
    """SD 3.5 medium with two of its layers, a small VAE, and no T5."""
    networks = importlib.import_module("networks")
    setup = memory.Setup.of("sd35").without("text_encoder_3")
    vae = {**networks.SD3_VAE, "block_out_channels": (32,) * 4}
    layers = {**networks.SD35_MEDIUM, "num_layers": 2, "dual_attention_layers": (0,)}
    parts = {
        **setup.checkpoint.parts,
        "transformer": lambda: SD3Transformer2DModel(**layers),
        "vae": lambda: AutoencoderKL(**vae),
    }
    return replace(setup, checkpoint=replace(setup.checkpoint, parts=parts), known={})


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35", "sd3"])
def test_every_part_has_as_many_numbers_as_the_published_one(benchmark: Any, name: str) -> None:
    checkpoint = benchmark("networks").CHECKPOINTS[name]
    assert checkpoint.parts.keys() == checkpoint.parameters.keys()
    for part, published in checkpoint.parameters.items():
        module = checkpoint.part(part, torch.bfloat16)
        stored = [*module.parameters(), *(b for n, b in module.named_buffers() if n in module.state_dict())]
        assert sum(tensor.numel() for tensor in stored) == published, part


def test_a_t5_keeps_from_float16_what_transformers_keeps_from_it(benchmark: Any) -> None:
    checkpoint = benchmark("networks").CHECKPOINTS["sd35"]
    half, brain = (checkpoint.part("text_encoder_3", dtype) for dtype in (torch.float16, torch.bfloat16))
    kept = {name for name, weight in half.named_parameters() if weight.dtype == torch.float32}
    assert kept and all(".wo." in name for name in kept)
    assert {weight.dtype for weight in brain.parameters()} == {torch.bfloat16}


def test_checkpointing_keeps_less_for_the_backward_pass_and_changes_nothing_else(
    memory: ModuleType, small: Any
) -> None:
    kept, again = (memory.training(small, checkpointing=on) for on in (False, True))
    assert again.saved < 0.5 * kept.saved
    assert again.peak < kept.peak
    assert (again.weights, again.adapter, again.moments) == (kept.weights, kept.adapter, kept.moments)


def test_moments_are_two_numbers_for_each_that_is_trained(memory: ModuleType, small: Any) -> None:
    found = memory.training(small, checkpointing=True)
    assert found.moments == pytest.approx(2 * found.adapter, rel=1e-3)  # and a count of steps for each tensor
    assert memory.moments_in_bytes(small) < 0.3 * found.moments


def test_what_rests_takes_no_memory_while_the_network_updates(memory: ModuleType, small: Any) -> None:
    resting, all_there = (memory.whole_run(small.changed("model", offload=on)) for on in (True, False))
    away = sum(small.sizes[name] for name in small.resting)
    assert all_there["update"] - resting["update"] == pytest.approx(away / 1e9)
    assert resting["decoding"] < all_there["decoding"]


def test_a_batch_decoded_one_by_one_takes_less(memory: ModuleType, small: Any) -> None:
    whole, sliced = (memory.drawing(small.changed("model", vae_slicing=on), 4)["vae"] for on in (False, True))
    assert sliced < whole


def test_fewer_bits_save_most_of_the_networks_weights(memory: ModuleType, small: Any) -> None:
    weights = small.sizes["transformer"] / 1e9
    eight, four = (memory.saved_by(small, bits) for bits in ("8bit", "4bit"))
    assert 0 < eight < 0.5 * weights
    assert four / eight == pytest.approx((2 - 0.5625) / 1)


def test_drawing_sd3_takes_what_hugging_face_measured(memory: ModuleType) -> None:
    """18.765 GB at its defaults, 1024 pixels and one image in float16, on an A100: huggingface.co/blog/sd3."""
    setup = memory.Setup.of("sd3").changed("model", size=1024, vae_dtype="same", vae_slicing=False)
    reckoned = sum(setup.sizes.values()) + memory.beyond_weights(setup, "vae", 1)
    assert reckoned / 1e9 == pytest.approx(18.765, rel=0.03)
