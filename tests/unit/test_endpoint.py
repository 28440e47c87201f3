"""A real HTTP server that speaks the OpenAI protocol, with the failures that such servers have."""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Request
from t2i_feedback.mllm.ledger import Ledger
from t2i_feedback.params import EndpointEntry

PICTURE = Image.new("RGB", (3, 2), (200, 10, 30))
KEY = "sk-secret-1234567890"


class Server(ThreadingHTTPServer):
    """Answers from `script` in turn: (HTTP status, headers, body); when it is used up, a plain "yes"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        self.seen: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.delay = 0.0
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            names = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append((time.monotonic(), names, body))
            status, headers, answer = server.script.pop(0) if server.script else (200, {}, said("yes"))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        time.sleep(server.delay)
        with server.lock:
            server.under_way -= 1
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def said(text: str | None, finish: str = "stop", logprobs: list[dict[str, float]] | None = None, **message) -> dict:
    """A chat completion; `logprobs` gives each written token's alternatives, the written one first."""
    content = [
        {
            "token": next(iter(options)),
            "logprob": math.log(next(iter(options.values()))),
            "bytes": None,
            "top_logprobs": [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in options.items()],
        }
        for options in logprobs or []
    ]
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
        "logprobs": {"content": content} if logprobs else None,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def failed(code: str, message: str = "no") -> dict:
    return {"error": {"message": message, "type": "error", "code": code}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def entry(server: Server, **values) -> EndpointEntry:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    defaults: dict[str, Any] = {"backend": "endpoint", "model": "m", "base_url": url, "retries": 0, "concurrency": 1}
    return EndpointEntry(**defaults | values)


def test_the_request_holds_text_and_the_picture_pixel_for_pixel(server: Server, ledger: Path) -> None:
    with mllm.open("gpt", entry(server), ledger) as model:
        roles.validate(model, [PICTURE], ["a {fish}"])
    _, _, body = server.seen[0]
    text, picture = body["messages"][0]["content"]
    assert "a {fish}" in text["text"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == PICTURE.tobytes()
    assert body["logprobs"] is True
    assert body["top_logprobs"] == 20
    assert body["temperature"] == 0


def test_probabilities_gather_all_spellings(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("Yes", logprobs=[{" Yes": 0.5, "yes": 0.1, "No": 0.2, "Maybe": 0.1}]))]
    with mllm.open("gpt", entry(server), ledger) as model:
        (verdict,) = roles.validate(model, [PICTURE], ["a fish"])
    assert verdict.p_yes == pytest.approx(0.6 / 0.8)


def test_ten_in_two_tokens_is_not_one(server: Server, ledger: Path) -> None:
    server.script = [(200, {}, said("10", logprobs=[{"1": 0.8, "5": 0.2}, {"0": 0.75, "": 0.25}]))]
    with mllm.open("gpt", entry(server), ledger) as model:
        (outcome,) = roles.score_preference(model, [PICTURE], "dark images")
    assert outcome.value == pytest.approx(10 * 0.6 + 1 * 0.2 + 5 * 0.2)


@pytest.mark.parametrize("logprobs", [None, [{"Score": 0.99, "I": 0.01}, {":": 1.0}, {" 7": 0.9}]])
def test_without_probabilities_of_the_answer_it_is_parsed(server: Server, ledger: Path, logprobs) -> None:
    server.script = [(200, {}, said("Score: 7/10", logprobs=logprobs)), (200, {}, said("great"))]
    with mllm.open("gpt", entry(server), ledger) as model:
        outcomes = roles.score_preference(model, [PICTURE, PICTURE.resize((4, 4))], "dark images")
    assert [outcome.value for outcome in outcomes] == [7, None]
    assert outcomes[1].status == "unparseable"


def test_an_entry_without_logprobs_asks_for_none(server: Server, ledger: Path) -> None:
    with mllm.open("cogvlm", entry(server, logprobs=False), ledger) as model:
        assert roles.validate(model, [PICTURE], ["a fish"])[0].p_yes == 1.0
    assert "logprobs" not in server.seen[0][2]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, {}, said("A red", finish="length")), "truncated"),
        ((200, {}, said(None, refusal="I can't help with that")), "refusal"),
        ((200, {}, said("", finish="content_filter")), "refusal"),
        ((400, {}, failed("content_policy_violation")), "refusal"),
        ((400, {}, failed("content_filter")), "refusal"),
        ((400, {}, failed("context_length_exceeded")), "truncated"),
        ((400, {}, failed("invalid_value", "image too small")), "transport"),
        ((500, {}, failed("server_error")), "transport"),
        ((429, {}, failed("rate_limit_exceeded")), "transport"),
        ((200, {}, said("")), "unparseable"),
    ],
)
def test_every_failure_has_its_type(server: Server, ledger: Path, answer, status: str) -> None:
    server.script = [answer]
    with mllm.open("gpt", entry(server), ledger) as model:
        (outcome,) = roles.enhance(model, ["a fish"])
        assert (outcome.status, outcome.value) == (status, None)
        (again,) = roles.enhance(model, ["a fish"])
    assert again.status == ("valid" if status == "transport" else status)
    assert len(server.seen) == (2 if status == "transport" else 1)


def test_retry_after_is_obeyed(server: Server, ledger: Path) -> None:
    server.script = [(429, {"Retry-After": "1.2"}, failed("rate_limit_exceeded")), (503, {}, failed("overloaded"))]
    with mllm.open("gpt", entry(server, retries=2), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].value == "yes"
    first, second, third = (moment for moment, *_ in server.seen)
    assert second - first >= 1.2
    assert third - second >= 0.3


def test_a_server_that_is_not_there_or_too_slow_is_transport(server: Server, ledger: Path) -> None:
    server.delay = 1.0
    with mllm.open("gpt", entry(server, timeout_seconds=0.2), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "transport"
    with mllm.open("gpt", entry(server, base_url="http://127.0.0.1:9/v1"), ledger) as model:
        assert roles.enhance(model, ["a fish"])[0].status == "transport"
    assert Ledger(ledger).summary()[0][7] == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_keeps_the_key_to_itself(
    server: Server, ledger: Path, monkeypatch, caplog, status: int
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SOME_KEY", KEY)
    server.script = [(200, {}, said("one")), *[(status, {}, failed("invalid", f"bad key {KEY}"))] * 50]
    with (
        mllm.open("gpt", entry(server, api_key_env="SOME_KEY", retries=3), ledger) as model,
        pytest.raises(UserError) as raised,
    ):
        roles.enhance(model, [f"a fish {i}" for i in range(50)])
    assert "mllms.gpt" in str(raised.value)
    assert "SOME_KEY" in str(raised.value)
    assert KEY not in str(raised.value) + caplog.text
    assert server.seen[0][1]["authorization"] == f"Bearer {KEY}"
    assert len(server.seen) <= 3
    assert KEY.encode() not in b"".join(file.read_bytes() for file in ledger.parent.iterdir())
    assert Ledger(ledger).summary()[0][2] == 1


@pytest.mark.parametrize("value", [None, " "])
def test_a_missing_key_is_said_before_any_call(server: Server, ledger: Path, monkeypatch, value: str | None) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value:
        monkeypatch.setenv("SOME_KEY", value)
    with (
        mllm.open("gpt", entry(server, api_key_env="SOME_KEY"), ledger) as model,
        pytest.raises(UserError, match=r"mllms\.gpt: the environment variable SOME_KEY is not set"),
    ):
        roles.enhance(model, ["a fish"])
    assert server.seen == []


def test_the_budget_of_calls_stops_with_everything_kept(server: Server, ledger: Path) -> None:
    prompts = [f"a fish {i}" for i in range(10)]
    with (
        mllm.open("gpt", entry(server, max_calls=4, concurrency=3), ledger) as model,
        pytest.raises(UserError, match=r"mllms\.gpt: the budget of max_calls = 4"),
    ):
        roles.enhance(model, prompts)
    assert len(server.seen) == 4
    with mllm.open("gpt", entry(server, max_calls=6), ledger) as model:
        assert all(outcome.value == "yes" for outcome in roles.enhance(model, prompts))
    assert len(server.seen) == 10


def test_the_budget_of_dollars_stops(server: Server, ledger: Path) -> None:
    prices = {"usd_per_million_input_tokens": 10.0, "usd_per_million_output_tokens": 30.0}  # 0.0013 per call
    with (
        mllm.open("gpt", entry(server, max_cost_usd=0.003, **prices), ledger) as model,
        pytest.raises(UserError, match=r"max_cost_usd = 0\.003"),
    ):
        roles.enhance(model, [f"a fish {i}" for i in range(10)])
    assert len(server.seen) == 3
    assert Ledger(ledger).summary()[0][11] == pytest.approx(3 * 0.0013)


def test_concurrency_is_bounded_and_the_order_kept(server: Server, ledger: Path) -> None:
    server.delay = 0.05
    with mllm.open("gpt", entry(server, concurrency=3), ledger) as model:
        replies = model.generate([Request(f"question {i}") for i in range(12)])
    assert len(replies) == 12
    assert server.most_under_way == 3
