"""What the benchmark of the judges says of a model whose answers are known, and the arithmetic of DDPO's."""

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from t2i_feedback import params
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import Reply, Request

pytestmark = pytest.mark.slow  # needs other processes

REPOSITORY = Path(__file__).parents[2]


class Known:
    """A Mllm that is sure of yes and of 10, but writes no to every fourth question."""

    templates, reading = "postcards", "probability"

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        yes, no = ("yes", "no") if requests[0].role == "validate" else ("10", "1")
        return [Reply("valid", no if i % 4 == 0 else yes) for i in range(len(requests))]

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        sure = "yes" if "yes" in candidates else "10"
        return [Reply("valid", "", {word: float(word == sure) for word in candidates}) for _ in requests]


def test_equal_verdicts_are_those_of_yes_and_no(figures: tuple[dict[str, float], str]) -> None:
    assert figures[0]["equal verdicts"] == 0.75
    assert "75.0% equal verdicts" in figures[1]


def test_the_target_of_reading_stands_beside_one_written_answer_and_no_other(
    figures: tuple[dict[str, float], str],
) -> None:
    lines = [line for line in figures[1].splitlines() if "prefill" in line]
    assert len(lines) == 4
    assert all(("target 3" in line) == ("one written answer" in line) for line in lines)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, float], str]:
    """The figures of reading, and what was printed of them."""
    monkeypatch.chdir(REPOSITORY)
    judges = load("judges")

    @contextmanager
    def opened(entry: LocalEntry) -> Iterator[Known]:
        yield Known()

    monkeypatch.setattr(judges, "opened", opened)
    monkeypatch.setattr(judges, "IMAGES", 8)
    return judges.reading(params.load().mllms["postcards"]), capsys.readouterr().out


def load(name: str) -> ModuleType:
    """A program of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ ddpo_vs_trl


@pytest.fixture(scope="module")
def ddpo() -> ModuleType:
    return load("ddpo_vs_trl")


def test_the_floor_is_the_flops_of_every_transition_over_the_machines_rate(ddpo: ModuleType) -> None:
    setting = ddpo.Setting(images=10, steps=4, timestep_share=0.5)
    assert ddpo.floor_seconds(setting, forward=100.0, both=300.0, rate=1000.0) == (4.0, 6.0)


def test_the_fastest_rollout_and_update_may_be_of_different_epochs_but_their_sum_is_of_one(ddpo: ModuleType) -> None:
    epochs = [{"rollout": 1.0, "update": 9.0}, {"rollout": 4.0, "update": 3.0}]
    assert ddpo.fastest(epochs) == {"rollout": 1.0, "update": 3.0, "both": 7.0}


@pytest.mark.parametrize(
    ("target", "seconds"),
    [(15.0, 5.0), (20.0, 10.0), (12.0, 2.0), (26.0, 26.0), (10.0, 0.0), (9.0, 0.0), (30.1, None)],
)
def test_the_time_to_a_reward_is_where_the_curve_first_crosses_it(
    ddpo: ModuleType, target: float, seconds: float | None
) -> None:
    curve = [(0.0, 10.0), (10.0, 20.0), (20.0, 20.0), (30.0, 30.0)]
    assert ddpo.time_to_reward(curve, target) == seconds


def test_a_curve_that_falls_back_had_the_reward_when_it_first_rose_to_it(ddpo: ModuleType) -> None:
    assert ddpo.time_to_reward([(0.0, 0.0), (1.0, 4.0), (2.0, 0.0), (3.0, 9.0)], 2.0) == 0.5


@pytest.mark.parametrize(
    ("theirs", "ratio"),
    [
        ([(0.0, 1.0), (10.0, 2.0)], 10.0),
        ([(0.0, 1.0), (10.0, 3.0), (20.0, 2.0)], 5.0),  # it had its last reward after 5 seconds
        ([(0.0, 1.0), (10.0, 0.5)], None),  # it fell
        ([(0.0, 1.0), (10.0, 9.0)], 0.0),  # ours does not get there
    ],
)
def test_the_speed_up_is_of_the_times_to_the_reward_that_the_other_ends_with(
    ddpo: ModuleType, theirs: list[tuple[float, float]], ratio: float | None
) -> None:
    assert ddpo.speed_up(theirs, [(0.0, 1.0), (2.0, 3.0)]) == ratio


def test_both_trainers_of_equal_work_differ_in_nothing_but_batch_sizes(ddpo: ModuleType) -> None:
    free = {"sample_batch": 0, "train_batch": 0, "accumulation": 0}
    assert ddpo.WORK["ours"]._replace(**free) == ddpo.WORK["trl"]._replace(**free)


def test_both_take_as_many_optimiser_steps_an_epoch(ddpo: ModuleType) -> None:
    model, finetune = ddpo.our_configuration(params.load(REPOSITORY / "params.yaml"), ddpo.WORK["ours"], 3)
    assert finetune.updates_per_epoch == 64 // (8 * 2)
    assert finetune.prompts_per_epoch * finetune.images_per_prompt == ddpo.WORK["trl"].images
    assert (finetune.epochs, finetune.min_sigma, model.steps, model.guidance) == (3, 0.0, 20, 5.0)


def test_two_processes_take_half_of_every_batch_each(ddpo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    model, finetune = ddpo.our_configuration(params.load(REPOSITORY / "params.yaml"), ddpo.WORK["ours"], 1)
    assert (model.batch_size, finetune.train_batch_size, finetune.updates_per_epoch) == (8, 10, 4)


def test_a_number_of_processes_that_does_not_divide_the_batches_is_refused(
    ddpo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ddpo_vs_trl.py", "--processes", "3"])
    with pytest.raises(SystemExit):
        ddpo.main()
    assert "--processes 3: --threads 2 and batches of 16, 8, 16, 20 must divide by it" in capsys.readouterr().err


def test_without_a_registry_the_comparison_ends_with_one_line_that_says_so(
    ddpo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('ERROR: No matching distribution found for trl')\n")
    python.chmod(0o755)
    monkeypatch.setattr(ddpo, "VENV", tmp_path)
    monkeypatch.setattr(ddpo, "make_environment", lambda: None)
    with pytest.raises(SystemExit, match=r"No matching distribution.*registry in reach"):
        ddpo.trl_python()


def test_an_interrupted_comparison_goes_on_where_it_was_asked_the_same(
    ddpo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def worker(command: list[str], **given: object) -> subprocess.CompletedProcess[bytes]:
        spec = json.loads(command[-1])
        started.append(spec["trainer"])
        (Path(spec["folder"]) / "result-0.json").write_text(str(len(started)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ddpo.subprocess, "run", worker)
    monkeypatch.setattr(ddpo, "RUNS", tmp_path)
    again = argparse.Namespace(threads=1, resume=True)
    assert ddpo.run("ours", again, "one", off=("texts",)) == 1
    assert ddpo.run("ours", again, "one", off=("texts",)) == 1  # as measured before
    assert ddpo.run("ours", again, "one", off=()) == 2  # asked otherwise
    assert ddpo.run("ours", argparse.Namespace(threads=1, resume=False), "one", off=()) == 3


def test_every_rung_of_the_ladder_is_the_same_work_and_the_last_is_ours(ddpo: ModuleType) -> None:
    settings = [setting for _, setting, _ in ddpo.LADDER]
    assert {setting._replace(train_batch=0) for setting in settings} == {ddpo.WORK["ours"]._replace(train_batch=0)}
    assert ddpo.LADDER[-1][1:] == (ddpo.WORK["ours"], ())
    assert {switch for _, _, off in ddpo.LADDER for switch in off} == set(ddpo.SWITCHES)
