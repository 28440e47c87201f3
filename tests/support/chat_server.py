"""A real HTTP server that speaks the OpenAI protocol, well or badly."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.probing import PROBE, VARIETY

DROP = "drop the connection"
Answer = tuple[int, dict[str, str], dict[str, Any] | str]


class Server(ThreadingHTTPServer):
    """Answers from `script` in turn: (HTTP status, headers, body); when it is used up, a plain "yes".

    What it is asked to find out what it can do is counted apart and answered as told here.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.takes_images, self.gives_logprobs, self.refuses_logprobs, self.holds_to_schema = True, True, False, False
        self.broken = False  # for the moment: no probe is answered
        self.models: list[dict[str, Any]] | None = None  # what it lists as loaded; None = it has no list
        self.steady = False  # gives the same answer at any temperature
        self.script: list[Answer] = []
        self.seen: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.probes: list[dict[str, Any]] = []
        self.delay = 0.0
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def probe(self, body: dict[str, Any]) -> Answer:
        self.probes.append(body)
        if body["messages"][0]["content"][-1]["text"] == VARIETY:
            return 200, {}, said("7" if self.steady else str(len(self.probes)))
        if self.broken:
            return 500, {}, failed("server_error", "out of memory")
        if len(body["messages"][0]["content"]) > 1 and not self.takes_images:
            return 400, {}, failed("invalid", "image input is not supported")
        if "logprobs" in body and self.refuses_logprobs:
            return 400, {}, failed("invalid", "logprobs are not supported")
        if "logprobs" in body and self.gives_logprobs:
            return 200, {}, said("Yes", logprobs=[{"Yes": 0.9, "No": 0.1}])
        if "response_format" in body and self.holds_to_schema:
            return 200, {}, said('{"answer": "yes", "reason": "it is"}')
        return 200, {}, said("yes")

    def answer(self, body: dict[str, Any]) -> Answer | None:
        """What it says instead of the script's next answer; None = nothing."""
        return None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            if body["messages"][0]["content"][-1]["text"] in (PROBE, VARIETY):
                status, headers, answer = server.probe(body)
            else:
                names = {name.lower(): value for name, value in self.headers.items()}
                server.seen.append((time.monotonic(), names, body))
                refusal = server.answer(body)
                status, headers, answer = refusal or (server.script.pop(0) if server.script else (200, {}, said("yes")))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        time.sleep(server.delay)
        with server.lock:
            server.under_way -= 1
        if answer == DROP:
            self.close_connection = True
            return
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        listed = self.path.endswith("/models") and self.server.models is not None
        data = json.dumps({"object": "list", "data": self.server.models} if listed else {}).encode()
        self.send_response(200 if listed else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


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


def entry(server: Server, **values) -> EndpointEntry:
    defaults = {"backend": "endpoint", "model": "m", "base_url": server.url, "retries": 0, "concurrency": 1}
    return EndpointEntry(**defaults | values)
