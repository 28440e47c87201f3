"""Nothing is asked twice, nothing that was answered is lost, and what failed is asked again."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from t2i_feedback.mllm.base import Decoding, Reply, Request
from t2i_feedback.mllm.ledger import Ledger, Ledgered
from t2i_feedback.params import EndpointEntry

ENTRY = EndpointEntry(
    backend="endpoint", model="echo", base_url="http://none", usd_per_million_input_tokens=10, max_new_tokens=8
)


class Echo:
    """A backend that repeats each text, in batches of two and in reverse; `answer` may be replaced to fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[Request], Reply] = lambda request: Reply("valid", request.text, tokens_in=100)

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        for start in reversed(range(0, len(requests), 2)):
            batch = list(enumerate(requests))[start : start + 2]
            replies = [(i, self.answer(request)) for i, request in batch]
            self.asked += [request.text for _, request in batch]
            yield replies

    def close(self) -> None:
        pass


def model(path: Path, backend: Echo, identity: str = "echo-1") -> Ledgered:
    return Ledgered(ENTRY, identity, lambda: backend, Ledger(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "ledger.sqlite"


def requests(*texts: str, **values) -> list[Request]:
    return [Request(text, role="enhance", **values) for text in texts]


def test_replies_stand_in_the_order_of_requests_and_equal_ones_are_asked_once(path: Path) -> None:
    echo = Echo()
    texts = ("long text", "b", "ccc", "b", "dd")
    assert [reply.text for reply in model(path, echo).generate(requests(*texts))] == list(texts)
    assert sorted(echo.asked) == ["b", "ccc", "dd", "long text"]


def test_what_is_answered_is_not_asked_again_and_loads_nothing(path: Path) -> None:
    first = model(path, Echo()).generate(requests("a", "b"))

    def load() -> Echo:
        raise AssertionError("the backend was loaded")

    assert Ledgered(ENTRY, "echo-1", load, Ledger(path)).generate(requests("a", "b")) == first


def test_a_key_holds_everything_that_an_answer_depends_on(path: Path) -> None:
    echo = Echo()
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    one = model(path, echo)
    one.generate(requests("a"))
    one.generate(requests("a"), max_new_tokens=4)
    one.generate(requests("a", sample=1))
    one.generate(requests("a", image=black))
    one.generate(requests("a", image=white))
    one.generate(requests("a", image=black.resize((2, 8))))
    one.choose(requests("a"), ("yes", "no"))
    one.choose(requests("a"), ("1", "2"))
    model(path, echo, identity="echo-2").generate(requests("a"))
    assert len(echo.asked) == 9
    one.generate([Request("a", role="another role")])
    one.generate(requests("a", image=black.copy()))
    assert len(echo.asked) == 9


def test_an_interrupted_run_is_taken_up_where_it_stopped(path: Path) -> None:
    echo = Echo()

    def stop_at_c(request: Request) -> Reply:
        if request.text == "c":
            raise KeyboardInterrupt
        return Reply("valid", request.text)

    echo.answer = stop_at_c
    with pytest.raises(KeyboardInterrupt):
        model(path, echo).generate(requests("a", "b", "c", "d", "e", "f"))
    assert echo.asked == ["e", "f"]
    again = Echo()
    replies = model(path, again).generate(requests("a", "b", "c", "d", "e", "f"))
    assert [reply.text for reply in replies] == list("abcdef")
    assert sorted(again.asked) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("status", ["valid", "refusal", "unparseable", "truncated"])
def test_answers_of_every_kind_are_kept(path: Path, status) -> None:
    echo = Echo()
    echo.answer = lambda request: Reply(status, "said", {"yes": 0.5, "no": 0.5}, 0.9, 3, 2, 0.5)
    first = model(path, echo).generate(requests("a"))
    assert model(path, echo).generate(requests("a")) == first
    assert first[0].status == status
    assert len(echo.asked) == 1


def test_what_was_lost_on_the_way_alone_is_asked_again(path: Path) -> None:
    echo = Echo()
    echo.answer = lambda request: Reply("transport" if request.text == "b" else "valid", request.text)
    assert [r.status for r in model(path, echo).generate(requests("a", "b"))] == ["valid", "transport"]
    again = Echo()
    assert [r.status for r in model(path, again).generate(requests("a", "b"))] == ["valid", "valid"]
    assert again.asked == ["b"]


def test_summary_counts_calls_hits_failures_and_cost(path: Path) -> None:
    echo = Echo()
    echo.answer = lambda r: Reply(
        "transport" if r.text == "b" else "refusal", r.text, tokens_in=0 if r.text == "b" else 100
    )
    one = model(path, echo)
    one.generate(requests("a", "b"))
    one.generate(requests("a", "b"))
    (row,) = Ledger(path).summary()
    assert row[:4] == ("enhance", "echo", 3, 1)
    assert row[4:8] == (1, 0, 0, 2)
    assert row[8] == 100
    assert row[11] == pytest.approx(100 * 10 / 1e6)
    command = [sys.executable, "-W", "error", "-m", "t2i_feedback.mllm.ledger", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "transport" in shown.stdout
    assert "echo" in shown.stdout


def ask_many(path: Path, first: int) -> list[str]:
    texts = [f"question {i}" for i in range(first, first + 40)]
    return [reply.text for reply in model(path, Echo()).generate(requests(*texts))]


def test_processes_and_threads_share_the_file(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        found = pool.starmap(ask_many, [(path, first) for first in (0, 20, 40)])
    with ThreadPoolExecutor(4) as threads:
        found += threads.map(ask_many, [path] * 4, (0, 30, 60, 90))
    assert all(len(texts) == 40 for texts in found)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM answers").fetchone() == (130, 130)
