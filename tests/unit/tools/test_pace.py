"""The pace of this processor beside the one of the figures, and what the estimate makes of it."""

import sys

import pytest
import torch

from t2i_feedback import params
from t2i_feedback.tools.doctor import fits
from t2i_feedback.tools.estimate import __main__ as program
from t2i_feedback.tools.estimate import pace
from t2i_feedback.tools.estimate.costs import estimate
from t2i_feedback.tools.estimate.figures import ByGpu, Throughputs, read


def test_a_processor_of_half_the_pace_takes_twice_as_long() -> None:
    p, figures = params.load(), read()
    usual, slow = (estimate(p, figures, "cpu", 1, at) for at in (1, 0.5))
    assert slow.hours == pytest.approx(2 * usual.hours)
    assert [one.wall for one in slow.stages] == pytest.approx([2 * one.wall for one in usual.stages])
    assert (slow.calls, slow.disk_gb, slow.bottleneck) == (usual.calls, usual.disk_gb, usual.bottleneck)


def test_a_gpu_and_a_server_far_away_do_not_wait_for_the_processor() -> None:
    figures = read()
    slow = pace.at(figures, 0.5)
    assert slow.gpus["a100"] == figures.gpus["a100"]
    assert slow.mllms["gpt4"] == figures.mllms["gpt4"]
    assert {name: one.get("a100") for name, one in _steps(slow)} == {n: one.get("a100") for n, one in _steps(figures)}
    assert pace.here(figures, "a100") == 1
    without = figures.model_copy(update={"gpus": {"a100": figures.gpus["a100"]}})
    assert pace.at(without, 1) is without and pace.here(without, "cpu") == 1


def _steps(figures: Throughputs) -> list[tuple[str, ByGpu]]:
    return [(name, one.steps) for name, one in figures.image_models.items()]


def test_the_probe_measures_and_leaves_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    assert pace.probe() > 0
    assert torch.get_num_threads() == threads


def test_the_page_and_the_doctor_say_what_this_machine_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = read().gpus["cpu"].probe
    assert known is not None
    monkeypatch.setattr(pace, "probe", lambda: known.value / 4)
    monkeypatch.setattr(sys, "argv", ["estimate"])
    program.main()
    assert "a core is 0.25 times as fast now" in capsys.readouterr().out
    usual, slow = (fits.judged("", read(), None, here).what for here in (1.0, pace.here(read(), "cpu")))
    assert usual != slow and "min" in slow
