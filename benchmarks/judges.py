"""How fast the MLLMs answer, as ratios measured in one run: reading, batching, the ledger, and concurrent requests.

    make bench

Runs the shipped model, and a server of its own that takes 200 ms per answer. A ratio compares the same questions asked
in two ways, in turns, the fastest of REPEATS each; a busy machine makes all times longer. Nothing is asserted: targets
stand beside the figures, which are also written to benchmarks/judges.json.
"""

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from t2i_feedback import mllm, params
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import sample_scene
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import Mllm, Reply, Request

RESULT = Path("benchmarks/judges.json")
NAME = "postcards"  # the entry of the catalogue that ships with the project
IMAGES = 96
CACHED = 20  # questions per image of the cached re-run
REPEATS = 3  # the fastest counts: other processes only ever slow a run down
SAMPLES = 5
ROUNDS = 16  # requests per connection
LATENCY = 0.2  # seconds per answer of the slow server
CONCURRENCY = 16
Answers = TypeVar("Answers")
COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "slow",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def main() -> None:
    entry = params.load().mllms[NAME]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    figures: dict[str, float] = {}
    for found in (reading(entry), batching(entry), cached(entry), concurrent()):
        figures |= found
    RESULT.write_text(json.dumps(figures | {"cores": os.cpu_count()}, indent=2) + "\n")


class Written:
    """A Mllm that writes its answers instead of giving probabilities: `count` of them to each question."""

    def __init__(self, model: Mllm, count: int):
        self._model, self._count = model, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        """The last of the answers, as text."""
        for i in range(self._count):
            replies = self._model.generate([replace(r, sample=r.sample * self._count + i) for r in requests])
        return replies


def reading(entry: LocalEntry) -> dict[str, float]:
    """Yes/no and 1-10 by the probabilities after one prefill, against the written answer.

    The target is for one written answer. The shipped model's is a single token, so that writing it costs one step more
    and the ratio stays near 1. Probabilities from written answers, as of a server without logprobs, take SAMPLES.
    """
    images, captions = postcards()
    preference = params.load().finetune.preference

    def validate(model: Mllm, sample: int) -> list[float | None]:
        return [verdict.p_yes for verdict in roles.validate(model, images, captions, sample)]

    def score(model: Mllm, sample: int) -> list[float | None]:
        return [outcome.value for outcome in roles.score_preference(model, images, preference, sample)]

    figures: dict[str, float] = {}
    for kind, ask in (("yes/no", validate), ("1-10", score)):
        with opened(entry) as read, opened(entry) as once, opened(entry) as often:
            ways = (read, Written(once, 1), Written(often, SAMPLES))
            (first, fast), (second, slow), (_, slowest) = in_turns([partial(ask, way) for way in ways])
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
        if kind == "yes/no":
            equal = sum((a >= 0.5) == (b >= 0.5) for a, b in pairs) / len(first)
            figures["equal verdicts"] = equal
            more = f"{equal:.1%} equal verdicts"
        else:
            more = f"scores {sum(abs(a - b) for a, b in pairs) / len(pairs):.2f} apart"
        say(f"{kind}: one prefill against one written answer", slow / fast, 3, more)
        say(f"{kind}: one prefill against {SAMPLES} written answers", slowest / fast, None, "the same reading")
        figures |= {f"{kind} prefill against one": slow / fast, f"{kind} prefill against samples": slowest / fast}
    return figures


def batching(entry: LocalEntry) -> dict[str, float]:
    """Batches of the entry's size against one by one."""
    images, captions = postcards()
    alone = entry.model_copy(update={"batch_size": 1})
    with opened(entry) as together, opened(alone) as one_by_one:
        asked = [partial(roles.validate, model, images, captions) for model in (together, one_by_one)]
        (first, fast), (second, slow) = in_turns(asked)
    apart = max(abs(a.p_yes - b.p_yes) for a, b in zip(first, second, strict=True))
    say(f"batches of {entry.batch_size} against one by one", slow / fast, 2, f"P(yes) within {apart:.0e}")
    return {"batches against one by one": slow / fast}


def cached(entry: LocalEntry) -> dict[str, float]:
    """A stage's questions once more, when the ledger has every answer: the model is not even loaded."""
    drawn, captions = postcards()
    images = [image for _ in range(CACHED) for image in drawn]
    texts = [captions[(i + k) % IMAGES] for k in range(CACHED) for i in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.sqlite"
        with mllm.connect(NAME, entry, ledger) as model:
            first = roles.validate(model, images, texts)
        started = time.perf_counter()
        with mllm.connect(NAME, entry, ledger) as model:
            again = roles.validate(model, images, texts)
        rate = len(texts) / (time.perf_counter() - started)
    if again != first:
        sys.exit("the ledger's answers differ from those that were given")
    say("answers a second when all are in the ledger", rate, 1000, f"{len(texts)} answers")
    return {"cached answers a second": rate}


def concurrent() -> dict[str, float]:
    """One connection against several, to a server that takes LATENCY per answer."""
    rates = []
    with slow_server() as url:
        for count in (1, CONCURRENCY):
            entry = EndpointEntry(backend="endpoint", model="slow", base_url=url, concurrency=count, retries=0)
            requests = [Request(f"question {i}") for i in range(ROUNDS * count)]
            with opened(entry) as model:
                started = time.perf_counter()
                replies = model.generate(requests)
                rates.append(len(requests) / (time.perf_counter() - started))
            if any(reply.status != "valid" for reply in replies):
                sys.exit(f"the slow server lost answers: {replies[0].text}")
    say(f"{CONCURRENCY} connections against one", rates[1] / rates[0], 12, f"{rates[1]:.0f} answers a second")
    return {"concurrent against one": rates[1] / rates[0]}


# ------------------------------------------------------------------------------------------------ means


def postcards() -> tuple[list[Image.Image], list[str]]:
    """IMAGES postcards and a caption for each; every second caption is another image's."""
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(IMAGES)]
    captions = [caption(scene, rng, "terse")[0] for scene in scenes]
    asked = [captions[i] if i % 2 else captions[(i + 2) % IMAGES] for i in range(IMAGES)]
    return [render(scene, rng) for scene in scenes], asked


@contextmanager
def opened(entry: LocalEntry | EndpointEntry) -> Iterator[Mllm]:
    """The model with an empty ledger, loaded and warm."""
    with tempfile.TemporaryDirectory() as folder, mllm.connect(NAME, entry, Path(folder) / "ledger.sqlite") as model:
        model.generate([Request("warm up", Image.new("RGB", (64, 64)))], 1)
        yield model


def in_turns(asked: Sequence[Callable[[int], Answers]]) -> list[tuple[Answers, float]]:
    """The first answers of each, and the least seconds of REPEATS. Each is called with a sample index of its own."""
    answers: list[Answers] = []
    seconds: list[list[float]] = [[] for _ in asked]
    for sample in range(REPEATS):
        for ask, times in zip(asked, seconds, strict=True):
            started = time.perf_counter()
            found = ask(sample)
            times.append(time.perf_counter() - started)
            answers.append(found)
    return [(found, min(times)) for found, times in zip(answers, seconds, strict=False)]


def say(what: str, figure: float, target: float | None, more: str) -> None:
    verdict = "" if target is None else f"target {target:g}, {'met' if figure >= target else 'MISSED'}; "
    print(f"{what:46s} {figure:8.1f}  ({verdict}{more})", flush=True)


class Slow(BaseHTTPRequestHandler):
    """Any chat request gets the same answer, LATENCY later."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(LATENCY)
        body = json.dumps(COMPLETION).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(pipe) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    pipe.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def slow_server() -> Iterator[str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main()
