"""`transformers serve` with the shipped checkpoint: a server gives the answers that the checkpoint gives in process."""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.backends.local import LocalEntry

CHECKPOINT = Path(__file__).parents[2] / "models/postcards/mllm"
START_SECONDS = 120
CAPTIONS = ["a red house", "a yellow sun on a beach", "a blue fish"]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port, without a hub."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(CHECKPOINT), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = random.Random(0)
    return [render(sample_scene(rng, "train"), rng) for _ in CAPTIONS]


def test_the_same_questions_have_the_same_answers(url: str, images, tmp_path: Path) -> None:
    served = EndpointEntry(
        backend="endpoint", model=str(CHECKPOINT), base_url=url, templates="postcards", samples=1, concurrency=1
    )
    here = LocalEntry(backend="local", model=str(CHECKPOINT), templates="postcards", device="cpu", reading="text")
    answers = []
    for entry in (served, here):
        with mllm.connect("postcards", entry, tmp_path / "ledger.sqlite") as model:
            assert model.reading == "text"  # the server gives no probabilities, and that is found out
            found = [
                roles.enhance(model, CAPTIONS),
                roles.enhance(model, CAPTIONS, ["there is no house", "there is no sun", "there is no fish"]),
                roles.validate(model, images, CAPTIONS),
                roles.explain(model, images, CAPTIONS),
                roles.score_preference(model, images, "dark images"),
            ]
            answers.append([(one.status, one.raw) for some in found for one in some])
    assert answers[0] == answers[1]
    assert {status for status, _ in answers[0]} == {"valid"}
    assert all(one.reading == "text" for one in found[2] + found[4])
