"""What makes a long training resumable and honest: schedules, checkpoints, weights that do not mislead."""

from pathlib import Path

import pytest
import torch
from recipe import Recipe, trapezoid
from torch import Generator, nn
from unet import velocity_loss


def test_a_longer_training_begins_as_a_shorter_one_did() -> None:
    assert [trapezoid(step, 1000, 0.5) for step in range(700)] == [trapezoid(step, 5000, 0.5) for step in range(700)]


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    assert trapezoid(0, 1000, 0.6) == pytest.approx(0.01)
    assert trapezoid(500, 1000, 0.6) == 0.6
    assert trapezoid(999, 1000, 0.6) < 0.01


def test_a_checkpoint_survives_more_steps_and_no_other_change(tmp_path: Path) -> None:
    def checkpoint(**params: float) -> Path:
        return Recipe("unet", {"steps": 10, "batch": 4} | params, tmp_path).checkpoint

    assert checkpoint(steps=20) == checkpoint()
    assert checkpoint(batch=8) != checkpoint()


class Guess(nn.Module):
    """Draws the same everywhere, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, noisy, timesteps, text):
        return type("Drawn", (), {"sample": self.value.expand_as(noisy)})


@pytest.mark.parametrize(("below", "weighs"), [(0, False), (1000, True)])
def test_things_weigh_more_only_below_a_timestep(below: int, weighs: bool) -> None:
    clean = torch.zeros(64, 1, 2, 2)
    clean[:, :, 0, 0] = 4.0
    things = (clean > 0).float()
    p = {"noise_exponent": 1.0, "thing_weight": 9.0}
    alphas = torch.linspace(0.999, 0.001, 1000)

    def loss(weighed: torch.Tensor) -> float:
        dice = Generator().manual_seed(0)
        return velocity_loss(Guess(), clean, torch.empty(0), weighed, below, p, alphas, dice).item()

    assert (loss(things) > 1.5 * loss(torch.zeros_like(things))) == weighs
