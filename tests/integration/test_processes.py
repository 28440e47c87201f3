"""Two real processes (gloo, CPU) against one: the stages' results, who did what, and how a launch fails.

Tolerances: images and features are bit-identical, since the batches are. A judge's answer depends on the batch that
it is asked in, and a gradient on the order of its sum: there 1e-4 of the value.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
import warm
import workplaces
import yaml
from safetensors.numpy import load_file
from tiny_experiment import BATCH, CAPTIONS, parameters, prepare

from t2i_feedback.foundation import distributed, paths
from t2i_feedback.foundation.errors import UserError

REPOSITORY = Path(__file__).parents[2]
CHAIN = Path(__file__).parents[1] / "support" / "chain_of_stages.py"
TORCHRUN = ("python", "-m", "torch.distributed.run", "--nproc-per-node", "2")
TOLERANCE = 1e-4


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "T2I_", "MLFLOW_"))}
    own = {"PYTHONPATH": f"{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1", "T2I_NO_TRACKING": "1"}
    return warm.environment(kept | own | more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


def run_chain(prepared: Path, folder: Path, *launcher: str) -> Path:
    shutil.copytree(prepared, folder, symlinks=True)
    done = subprocess.run([*launcher, str(CHAIN), "."], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_chain(prepared, tmp_path_factory.mktemp("one") / "run", "python")


@pytest.fixture(scope="module")
def together(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_chain(prepared, tmp_path_factory.mktemp("two") / "run", *TORCHRUN)


def lines(folder: Path, name: str) -> list[str]:
    return sorted((folder / name).read_text().splitlines())


def test_there_were_two_processes_and_one(together: Path, alone: Path) -> None:
    assert lines(together, "processes") == ["0 of 2", "1 of 2"]
    assert lines(alone, "processes") == ["0 of 1"]


@pytest.mark.parametrize("arm", ["raw", "enhanced", "validated", "best_of_n"])
def test_two_processes_draw_the_same_bytes_as_one(together: Path, alone: Path, arm: str) -> None:
    ours, theirs = (
        {file.name: file.read_bytes() for file in (folder / paths.arm(arm) / "images").iterdir()}
        for folder in (together, alone)
    )
    assert len(theirs) >= CAPTIONS
    assert ours == theirs


def test_every_image_is_drawn_once_and_none_is_missing(together: Path, alone: Path) -> None:
    assert lines(together, "drawn") == lines(alone, "drawn")
    assert set(Counter(lines(together, "drawn")).values()) == {1}


def test_every_question_reaches_a_model_once(together: Path, alone: Path) -> None:
    asked = lines(together, "asked")
    assert len(asked) == len(lines(alone, "asked"))
    assert set(Counter(asked).values()) == {1}


def test_the_ledger_of_two_processes_accounts_for_what_one_process_asks(together: Path, alone: Path) -> None:
    def calls(folder: Path) -> list[tuple]:
        with sqlite3.connect(folder / ".cache/ledger.sqlite") as connection:
            return connection.execute(
                "SELECT role, model, COUNT(*) FROM answers GROUP BY 1, 2 ORDER BY 1, 2"
            ).fetchall()

    assert calls(together) == calls(alone)
    assert {role for role, *_ in calls(together)} == {"enhance", "validate", "feedback", "judge"}


def test_the_reference_has_the_same_features(together: Path, alone: Path) -> None:
    ours, theirs = (load_file(folder / paths.REFERENCE / "features.safetensors") for folder in (together, alone))
    assert all((ours[name] == theirs[name]).all() for name in ("features", "logits"))
    assert len(ours["features"]) == CAPTIONS


def test_evaluate_measures_the_same(together: Path, alone: Path) -> None:
    ours, theirs = (json.loads((folder / paths.arm_numbers("validated")).read_text()) for folder in (together, alone))
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert ours["fid"] == theirs["fid"]


def test_fine_tuning_ends_with_the_same_adapter(together: Path, alone: Path) -> None:
    ours, theirs = (
        load_file(folder / paths.ADAPTER / "pytorch_lora_weights.safetensors") for folder in (together, alone)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=TOLERANCE), name  # a step of Adam is 3e-3 whatever the gradient


def test_nothing_is_left_of_the_unfinished_work(together: Path) -> None:
    assert list((together / ".cache/partial").iterdir()) == []


# ------------------------------------------------------------------------------------------------ a launch


def stage(folder: Path, *command: str, launcher: str, **more: str) -> subprocess.Popen:
    """A stage started as DVC starts it, in a folder that has all it needs."""
    given = environment(T2I_LAUNCHER=launcher) | more
    command = ("python", "-m", f"t2i_feedback.stages.{command[0]}", *command[1:])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=given, text=True, **pipes)


@pytest.fixture
def place(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


LAUNCHER = shlex.join(TORCHRUN)


def test_what_the_user_can_mend_is_one_line_of_one_process(place: Path) -> None:
    process = stage(place, "generate", "rwa", launcher=LAUNCHER)
    _, told = process.communicate()
    assert re.fullmatch(r"generate: which arm\? generate knows raw, .* \(dvc.yaml\), not 'rwa'\n", told)
    assert process.returncode == 1


def test_a_launcher_that_starts_one_process_is_refused(place: Path) -> None:
    process = stage(place, "generate", "raw", launcher="accelerate launch --cpu --num_processes 2")
    _, told = process.communicate()
    assert re.fullmatch(r"generate: T2I_LAUNCHER: .* started one process alone .*\n", told)
    assert process.returncode == 1


@pytest.mark.parametrize("launcher", ["no-such-launcher --fast", "true"])
def test_a_launcher_that_starts_nothing_is_named(place: Path, launcher: str) -> None:
    process = stage(place, "generate", "raw", launcher=launcher)
    _, told = process.communicate()
    assert told.startswith("generate: T2I_LAUNCHER: ")
    assert launcher.split()[0] in told
    assert process.returncode == 1


def test_a_stage_that_cannot_use_several_processes_ignores_the_launcher(place: Path) -> None:
    process = stage(place, "data", launcher="no-such-launcher")
    process.communicate()
    assert process.returncode == 0


def test_a_killed_process_ends_the_run_and_the_next_run_takes_it_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    workplaces.write_parameters(parameters(steps=100))
    process = stage(place, "generate", "raw", launcher=LAUNCHER, PATH=warm.real(os.environ)["PATH"])
    while process.poll() is None and not list((place / ".cache").rglob("*.png")):
        time.sleep(0.02)
    started = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
    second = next(child for child in started if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    line = "generate: process 2 of the launch was killed by SIGKILL; what was done is kept, and the same command takes"
    assert line in told
    assert "Traceback" not in told
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started)
    kept = {file.name: file.stat().st_mtime_ns for file in (place / ".cache").rglob("*.png")}

    again = stage(place, "generate", "raw", launcher=LAUNCHER)
    assert "generate raw: done, data/arms/raw/images\n" in again.communicate()[0]
    drawn = {file.name: file.stat().st_mtime_ns for file in (place / paths.arm("raw") / "images").iterdir()}
    assert len(drawn) == CAPTIONS
    complete = [name for name in kept if drawn[name] == kept[name]]
    assert len(complete) >= len(kept) - 2 * BATCH  # but for the two batches that were being saved


def test_two_nodes_share_the_work_and_each_has_a_ledger_of_its_own(place: Path, tmp_path: Path) -> None:
    """Two launchers, as launch/two-nodes.sh starts them; the way to the second node is a shell on this machine."""
    shutil.copytree(REPOSITORY / "launch", place / "launch")
    config = yaml.safe_load((place / "launch/two-nodes.yaml").read_text()) | {"num_processes": 2}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config | {"main_process_port": free_port()}))
    way = tmp_path / "way"
    way.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    way.chmod(0o755)
    nodes = {"T2I_NODES": "127.0.0.1 127.0.0.1", "T2I_SSH": str(way), "T2I_NODES_CONFIG": str(tmp_path / "small.yaml")}
    process = stage(place, "enhance", launcher="launch/two-nodes.sh", **nodes)
    shown, told = process.communicate()
    assert process.returncode == 0, told
    assert shown.count("enhance: postcards rewrites") == 1
    assert len((place / paths.FIRST_PROMPTS).read_text().splitlines()) == CAPTIONS
    answers = []
    for name in ("ledger.sqlite", "ledger-node1.sqlite"):
        with sqlite3.connect(place / ".cache" / name) as connection:
            answers += connection.execute("SELECT COUNT(*) FROM answers").fetchone()
    assert sum(answers) == CAPTIONS
    assert min(answers) >= CAPTIONS // 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(("visible", "own"), [(None, "1"), ("4,6", "6"), ("GPU-a,GPU-b", "GPU-b")])
def test_each_process_sees_the_device_of_its_place_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, own: str
) -> None:
    pretend(monkeypatch, devices=2, place=1, visible=visible)
    distributed.use_own_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, devices=2, place=2, visible=None)
    with pytest.raises(UserError, match="process 3 of this machine has no CUDA device, since it sees 2"):
        distributed.use_own_device()


def pretend(monkeypatch: pytest.MonkeyPatch, devices: int, place: int, visible: str | None) -> None:
    """The last process of a launch on a machine with that many GPUs; there is none here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    monkeypatch.setenv("WORLD_SIZE", str(place + 1))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", str(place))
