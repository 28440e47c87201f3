"""Stable Diffusion 1.5 fits a GPU of 10 GB, reckoned on fake tensors with its own configuration."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow  # takes seconds of planning

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory", REPOSITORY / "benchmarks" / "memory.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps(memory: ModuleType) -> dict[bool, object]:
    """A training step at batch 1, without and with gradient checkpointing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        p = memory.paper()
    found = {checkpointing: memory.training(p, checkpointing=checkpointing) for checkpointing in (False, True)}
    print(found)
    return found


def test_the_networks_are_those_of_sd_15(memory: ModuleType) -> None:
    found = {
        part: sum(weight.numel() for weight in memory.network(part, torch.float16).parameters())
        for part in memory.PARAMETERS
    }
    assert found == memory.PARAMETERS


def test_lora_training_fits_10_gb_at_batch_1(memory: ModuleType, steps: dict) -> None:
    assert steps[False].peak < memory.LIMIT - 1  # what CUDA, cuDNN and the allocator keep for themselves
    assert steps[True].peak < memory.LIMIT - 1


def test_a_step_counts_weights_in_half_precision_the_adapter_in_float32_and_adams_two_moments(
    memory: ModuleType, steps: dict
) -> None:
    for step in steps.values():
        assert step.weights == pytest.approx(sum(memory.PARAMETERS.values()) * 2 / 1e9, rel=0.001)
        assert step.adapter == pytest.approx(797_184 * 4 / 1e9)
        assert step.moments == pytest.approx(2 * step.adapter, rel=0.01)
        assert step.peak > step.weights + step.adapter + step.saved


def test_gradient_checkpointing_keeps_a_fraction_of_the_activations(steps: dict) -> None:
    """Also in evaluation mode, in which the UNet is trained."""
    assert steps[True].saved < 0.25 * steps[False].saved
    assert steps[True].peak < 0.7 * steps[False].peak


def test_every_live_byte_is_counted_and_none_that_is_gone(memory: ModuleType) -> None:
    with memory.counting() as count:
        kept = torch.zeros(250)
        view = kept[:10].view(2, 5)
        torch.ones(1000)
        assert (count.now, count.peak) == (1000, 5000)
        del kept
        assert count.now == 1000  # the view still holds it
        del view
        assert count.now == 0
