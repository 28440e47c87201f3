"""The backends that there are, found in their folder: a third one is one new file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from t2i_feedback.foundation.params import CHECKPOINT, FREE
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.ledger import Ledger

REPOSITORY = Path(__file__).parents[3]
SERVER = {"backend": "endpoint", "model": "m", "base_url": "http://localhost:1/v1"}

ECHO = '''
"""The backend `echo`: says what it is asked."""

import json
from typing import Annotated, ClassVar, Literal

from t2i_feedback.foundation.params import Count
from t2i_feedback.mllm.backends import Access, Entry


class EchoEntry(Entry):
    in_process: ClassVar[bool] = False

    backend: Literal["echo"]
    voices: Count

    def access(self, name, ledger):
        return Access(json.dumps(["echo", self.model]), lambda: Echo(self))

    @property
    def concurrent(self):
        return self.voices

    @property
    def times_asked(self):
        return 7

    def cost_usd(self, tokens_in, tokens_out):
        return 2.0


class Echo:
    def __init__(self, entry):
        self.entry = entry

    def abilities(self):
        from t2i_feedback.mllm.base import Abilities

        return Abilities(images=True, logprobs=False, schema=False)

    def answers(self, requests, decoding):
        from t2i_feedback.mllm.base import Reply

        yield [(i, Reply("valid", f"{self.entry.model} says {r.text}")) for i, r in enumerate(requests)]

    def close(self):
        pass


ENTRY = EchoEntry
'''

PROGRAM = """
import json
import sys
from pathlib import Path

from t2i_feedback.mllm import backends

folder = Path(sys.argv[1])
backends.__path__.append(str(folder))

from t2i_feedback import mllm, params
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.base import Request
from t2i_feedback.tools.estimate.costs import estimate
from t2i_feedback.tools.estimate.figures import read

raw = params.load().model_dump()
raw["mllms"]["gpt4"] = {"backend": "echo", "model": "canyon"}
raw["evaluate"]["judge"] = "gpt4"
try:
    params.check(raw, "params.yaml")
except UserError as error:
    refused = str(error)
raw["mllms"]["gpt4"] |= {"voices": 3, "reading": "samples"}
p = params.check(raw, "params.yaml")
with mllm.connect("gpt4", p.mllms["gpt4"], folder / "ledger.sqlite") as model:
    said = [reply.text for reply in model.generate([Request("hello")])]
found = estimate(p, read(), "cpu", 1)
calls = found.calls["held-out judge gpt4"]
print(json.dumps({"refused": refused, "said": said, "dollars per call": found.api_usd / calls, "calls": calls}))
"""


@pytest.mark.slow
def test_a_new_backend_is_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "echo_of_a_test.py").write_text(ECHO)
    done = subprocess.run(
        ["python", "-c", PROGRAM, str(tmp_path)],
        cwd=REPOSITORY,
        env=warm.environment(os.environ | {"PYTHONPATH": "src"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "\n  mllms.gpt4.voices: field required" in found["refused"]
    assert found["said"] == ["canyon says hello"]
    assert found["dollars per call"] == 2.0
    assert found["calls"] % 7 == 0


def test_params_load_without_what_backends_run_on() -> None:
    code = "import sys\nfrom t2i_feedback import params\nparams.load()\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "transformers", "openai", "huggingface_hub", "skimage", "PIL"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("model", "hub"),
    [("llava-hf/x", "llava-hf/x"), ("package:smollm2/model.gguf", None), ("models/some.gguf", None), ("models", None)],
)
def test_what_is_not_here_comes_from_the_hub(model: str, hub: str | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    assert LocalEntry(backend="local", model=model).hub_model == hub
    assert EndpointEntry(**SERVER | {"model": model}).hub_model is None


def test_the_ledger_knows_a_server_by_its_address_and_model(tmp_path: Path) -> None:
    access = EndpointEntry(**SERVER).access("x", Ledger(tmp_path / "ledger.sqlite"))
    assert access.identity == '["endpoint", "http://localhost:1/v1", "m"]'


def test_a_checkpoint_is_marked_and_a_server_that_answers_more_at_once_changes_no_result() -> None:
    assert CHECKPOINT in LocalEntry.model_fields["model"].metadata
    assert CHECKPOINT not in EndpointEntry.model_fields["model"].metadata
    assert FREE in EndpointEntry.model_fields["concurrency"].metadata
    assert FREE in LocalEntry.model_fields["batch_size"].metadata


def test_what_an_answer_costs() -> None:
    paid = EndpointEntry(**SERVER, usd_per_million_input_tokens=10, usd_per_million_output_tokens=30)
    assert paid.cost_usd(1000, 100) == (10 * 1000 + 30 * 100) / 1e6
    assert LocalEntry(backend="local", model="m").cost_usd(1000, 100) == 0
