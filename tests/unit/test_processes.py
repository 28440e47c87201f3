"""Two real processes (gloo, CPU) against one: the stages' results, who did what, and how a launch fails.

Tolerances: pictures and features are bit-identical, since the batches are. A judge's answer depends on the batch that
it is asked in, and a gradient on the order of its sum: there 1e-4 of the value.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_diffusion
import yaml
from safetensors.numpy import load_file

from t2i_feedback import paths, processes
from t2i_feedback.errors import UserError
from t2i_feedback.stages import data

REPOSITORY = Path(__file__).parents[2]
CHAIN = Path(__file__).with_name("chain_of_stages.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
CAPTIONS, BATCH = 10, 4  # three batches: the first process draws two of them
TOLERANCE = 1e-4


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "T2I_", "MLFLOW_"))}
    return kept | {"PYTHONPATH": f"{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1", "T2I_NO_TRACKING": "1"} | more


def write_params(steps: int = 2) -> None:
    p = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    p["data"] |= {"evaluation_captions": CAPTIONS, "reference_images": CAPTIONS, "finetune_captions": 4}
    p["model"] |= {"name": "sd", "size": tiny_diffusion.SIZE, "steps": steps, "batch_size": BATCH, "device": "cpu"}
    p["stage1"] |= {"max_rounds": 2, "max_invalid_fraction": 1.0}
    p["finetune"] |= tiny_diffusion.finetune(judge="postcards", max_invalid_fraction=1.0).model_dump()
    p["evaluate"] |= {"resamples": 50, "splits": 2, "kid_subset": 4, "kid_subsets": 3, "max_invalid_fraction": 1.0}
    paths.PARAMS.write_text(yaml.safe_dump(p))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a tiny image model and the shipped judges: what the chain of stages begins with."""
    folder = tmp_path_factory.mktemp("prepared")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_params()
        tiny_diffusion.pipeline(folder / "tokenizer").save_pretrained("sd")
        for name in ("mllm", "judge", "oracle"):
            shutil.copytree(REPOSITORY / "models/postcards" / name, Path("models/postcards") / name)
        data.main()
    finally:
        os.chdir(before)
    return folder


def run_chain(prepared: Path, folder: Path, *launcher: str) -> Path:
    shutil.copytree(prepared, folder)
    done = subprocess.run([*launcher, str(CHAIN), "."], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_chain(prepared, tmp_path_factory.mktemp("one") / "run", sys.executable)


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


def test_every_picture_is_drawn_once_and_none_is_missing(together: Path, alone: Path) -> None:
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
    ours, theirs = (json.loads((folder / paths.arm_metrics("validated")).read_text()) for folder in (together, alone))
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert ours["fid"] == theirs["fid"]


def test_fine_tuning_ends_with_the_same_adapter(together: Path, alone: Path) -> None:
    ours, theirs = (
        load_file(folder / paths.ADAPTER / "pytorch_lora_weights.safetensors") for folder in (together, alone)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-3), name  # a step of Adam is 3e-3 whatever the gradient's size


def test_nothing_is_left_of_the_unfinished_work(together: Path) -> None:
    assert list((together / ".cache/partial").iterdir()) == []
