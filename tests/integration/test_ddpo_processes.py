"""Points 10 and 11 of the trainer's correctness: fine-tuning in two real processes (gloo, CPU)."""

import os
import subprocess
from pathlib import Path

import pytest
import tiny_diffusion
import torch
import warm

REPOSITORY = Path(__file__).parents[2]
PROGRAM = Path(__file__).parents[1] / "support" / "ddpo_in_processes.py"
TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
EPOCHS, UPDATES, IMAGES = 4, 2, 8
HANGING = 300  # seconds: a run takes some ten


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny_diffusion.pipeline(folder / "tokenizer_files").save_pretrained(folder)
    return folder


def train(sd: Path, folder: Path, objective: str, *launcher: str, die: bool = False) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    command = ["python", *launcher, str(PROGRAM), str(sd), str(folder), objective, *(["die"] if die else [])]
    given = warm.environment(os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"})
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=HANGING)


@pytest.fixture(scope="module", params=["ddpo", "nft"])  # one that keeps trajectories, and one that does not
def objective(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def two(sd: Path, objective: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes has to show after an uninterrupted run."""
    folder = tmp_path_factory.mktemp("two")
    done = train(sd, folder, objective, *TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_processes_draw_the_images_of_an_epoch_without_rest_or_double(two: list[dict]) -> None:
    for first, second in zip(two[0]["drawn"], two[1]["drawn"], strict=True):
        assert sorted(first + second) == list(range(IMAGES))
        assert len(first) == len(second)


def test_11_two_processes_with_different_data_step_with_equal_gradients(two: list[dict]) -> None:
    first, second = two
    assert len(first["combined"]) == len(second["combined"]) == EPOCHS * UPDATES
    for own, others, ours, theirs in zip(
        first["own"], second["own"], first["combined"], second["combined"], strict=True
    ):
        assert not torch.equal(own, others)
        assert torch.equal(ours, theirs)
    assert torch.equal(first["adapter"], second["adapter"])


def test_11_the_gradient_is_that_of_all_images_as_one_process_has_it(
    sd: Path, objective: str, two: list[dict], tmp_path: Path
) -> None:
    done = train(sd, tmp_path / "one", objective)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = torch.load(tmp_path / "one/0.pt", weights_only=True)
    gradient = alone["combined"][0]
    assert gradient.norm() > 0
    assert torch.allclose(two[0]["combined"][0], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_10_a_process_killed_while_writing_hangs_nobody_and_the_next_run_ends_as_if_nothing_had_been(
    sd: Path, objective: str, two: list[dict], tmp_path: Path
) -> None:
    killed = train(sd, tmp_path / "run", objective, *TWO, die=True)  # would raise TimeoutExpired
    assert killed.returncode != 0
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-00001",
        "checkpoint-00002",
    ]
    again = train(sd, tmp_path / "run", objective, *TWO)
    assert again.returncode == 0, again.stderr[-3000:]
    for rank, uninterrupted in enumerate(two):
        resumed = torch.load(tmp_path / "run" / f"{rank}.pt", weights_only=True)
        assert len(resumed["combined"]) == 2 * UPDATES
        assert torch.equal(resumed["adapter"], uninterrupted["adapter"])
