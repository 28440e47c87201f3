"""Nothing is asked twice, nothing that was answered is lost, and what failed is asked again."""

import json
import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import warm
from chat_server import entry, running
from PIL import Image

from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Abilities, Decoding, Reply, Request
from t2i_feedback.mllm.ledger import Ledger
from t2i_feedback.mllm.ledgered import Ledgered

pytestmark = pytest.mark.slow  # needs other processes

ENTRY = EndpointEntry(
    backend="endpoint", model="echo", base_url="http://none", usd_per_million_input_tokens=10, max_new_tokens=8
)


class Echo:
    """A backend that repeats each text, in batches of two and in reverse; `answer` may be replaced to fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[Request], Reply] = lambda request: Reply("valid", request.text, tokens_in=100)

    def abilities(self) -> Abilities:
        return Abilities(images=True, logprobs=True, schema=False)

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


def command(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The ledger's own command line."""
    words = ["python", "-m", "t2i_feedback.tools.ledger", str(path), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=warm.environment(os.environ | paths))


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
    shown = command(path).stdout
    assert "transport" in shown
    assert "echo" in shown


def test_an_answer_that_says_nothing_counts_by_its_kind(path: Path) -> None:
    model(path, Echo()).generate([Request("maybe", role="validate"), Request("I'm sorry, no", role="judge")])
    assert [(row[0], *row[4:8]) for row in Ledger(path).summary()] == [("judge", 1, 0, 0, 0), ("validate", 0, 1, 0, 0)]


def test_an_answer_is_kept_with_its_templates_version_and_its_stage(path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "evaluate@raw")
    model(path, Echo()).generate(requests("a", template="0123abcd"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT template, stage FROM answers").fetchall() == [("0123abcd", "evaluate@raw")]


@pytest.mark.parametrize(
    ("probabilities", "mass"), [({"yes": math.nan, "no": math.nan}, math.nan), ({"yes": 1.0, "no": 0.0}, math.inf)]
)
def test_a_kept_answer_that_is_no_number_is_asked_again_once(path: Path, probabilities, mass) -> None:
    """Earlier versions kept NaN as a valid answer."""
    echo = Echo()
    echo.answer = lambda request: Reply("valid", "yes", {"yes": 0.5, "no": 0.5}, 0.9, 100)
    model(path, echo).choose(requests("a"), ("yes", "no"))
    kept = json.dumps(asdict(Reply("valid", "yes", probabilities, mass, 100)))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET reply = ?", (kept,))
    again = Echo()
    again.answer = lambda request: Reply("valid", "yes", {"yes": 0.75, "no": 0.25}, 0.9, 100)
    for _ in range(2):
        (reply,) = model(path, again).choose(requests("a"), ("yes", "no"))
        assert reply.probabilities == {"yes": 0.75, "no": 0.25}
    assert again.asked == ["a"]
    (row,) = Ledger(path).summary()
    assert (row[2], row[8]) == (2, 200)  # what the first one cost is not forgotten
    assert Ledger(path).failed() == (0, [])


# ------------------------------------------------------------------------------------------------ asked again


def test_what_failed_is_told_with_the_stages_that_asked_it(path: Path, monkeypatch) -> None:
    def said(request: Request) -> Reply:
        kinds = {"b": "transport", "c": "refusal", "d": "truncated"}
        return Reply(kinds.get(request.text, "valid"), request.text, tokens_in=100)

    echo = Echo()
    echo.answer = said
    for stage, texts in (("enhance", "abc"), ("validate", "ade"), ("generate_raw", "f")):
        monkeypatch.setenv("DVC_STAGE", stage)
        model(path, echo).generate(requests(*texts))
    ledger = Ledger(path)
    assert ledger.failed() == (3, ["enhance", "validate"])
    for stage in ("enhance", "validate"):
        ledger.forget_failed(stage)
    again = Echo()
    model(path, again).generate(requests(*"abcdef"))
    assert sorted(again.asked) == ["b", "c", "d"]
    (row,) = Ledger(path).summary()
    assert (row[2], *row[4:8]) == (9, 1, 0, 1, 1)  # six first askings and three again; what was paid for stays
    assert row[8] == 900


STAGE = """
import sys
from pathlib import Path
from test_ledger import Echo, Reply, model, requests
name = sys.argv[1]
if Path(f"{name} stops").exists():
    sys.exit(3)
echo = Echo()
if Path("broken").exists():
    kinds = {"b": "transport", "c": "refusal"}
    echo.answer = lambda request: Reply(kinds.get(request.text[-1], "valid"), request.text)
replies = model(Path("ledger.sqlite").resolve(), echo).generate(requests(*(name + letter for letter in "abc")))
Path(f"{name}.txt").write_text(" ".join([*(reply.status for reply in replies), "of", *sorted(echo.asked)]))
"""


@pytest.fixture
def failed_stages(tmp_path: Path, monkeypatch) -> None:
    """Here, the stages `one` and `two` have run, and two of three answers failed in each; they would not fail again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    Path("ask.py").write_text(STAGE)
    stages = {
        "one": {"cmd": "python ask.py one", "deps": ["ask.py"], "outs": ["one.txt"]},
        "two": {"cmd": "python ask.py two", "deps": ["ask.py", "one.txt"], "outs": ["two.txt"]},
    }
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    Path("broken").touch()
    for words in (("init", "--no-scm", "--quiet"), ("repro", "--quiet")):
        subprocess.run(["dvc", *words], check=True, env=warm.environment(os.environ))
    assert Path("one.txt").read_text() == "valid transport refusal of onea oneb onec"
    Path("broken").unlink()


@pytest.mark.usefixtures("failed_stages")
def test_retry_failed_asks_only_the_failed_ones_and_reruns_their_stages() -> None:
    done = command(Path("ledger.sqlite"), "--retry-failed").stdout
    assert "4 failed answers will be asked again" in done
    assert done.index("dvc repro -s -f one") < done.index("dvc repro -s -f two")
    assert Path("one.txt").read_text() == "valid valid valid of oneb onec"
    assert Path("two.txt").read_text() == "valid valid valid of twob twoc"
    assert "no answer has failed" in command(Path("ledger.sqlite"), "--retry-failed").stdout


@pytest.mark.usefixtures("failed_stages")
def test_a_stage_that_stops_keeps_its_failures_and_leaves_the_later_ones_their_turn() -> None:
    Path("one stops").touch()
    with pytest.raises(subprocess.CalledProcessError):
        command(Path("ledger.sqlite"), "--retry-failed")
    assert Path("two.txt").read_text() == "valid valid valid of twob twoc"
    Path("one stops").unlink()
    done = command(Path("ledger.sqlite"), "--retry-failed").stdout
    assert "2 failed answers will be asked again" in done
    assert Path("one.txt").read_text() == "valid valid valid of oneb onec"
    assert "no answer has failed" in command(Path("ledger.sqlite"), "--retry-failed").stdout


def test_a_failure_that_failed_again_is_told_again(path: Path) -> None:
    echo = Echo()
    echo.answer = lambda request: Reply("refusal", request.text)
    for _ in range(2):
        model(path, echo).generate(requests("a"))
        ledger = Ledger(path)
        assert ledger.failed() == (1, [""])
        ledger.close_failed("", ledger.forget_failed(""))
    assert ledger.failed() == (0, [])


def test_what_is_lost_again_while_its_stage_runs_stays_open(path: Path) -> None:
    echo = Echo()
    echo.answer = lambda request: Reply("transport", request.text)
    model(path, echo).generate(requests("a"))
    ledger = Ledger(path)
    last = ledger.forget_failed("")
    model(path, echo).generate(requests("a"))
    ledger.close_failed("", last)
    assert ledger.failed() == (1, [""])


def test_a_file_of_an_earlier_version_is_taken_up(path: Path) -> None:
    model(path, Echo()).generate(requests("a"))
    with sqlite3.connect(path) as connection:
        for table, column in (("answers", "template"), ("answers", "stage"), ("failures", "cost_usd")):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    echo = Echo()
    assert [reply.text for reply in model(path, echo).generate(requests("a", "b"))] == ["a", "b"]
    assert echo.asked == ["b"]


# ------------------------------------------------------------------------------------------------ at once


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


ASK_FOREVER = """
import json, sys
from pathlib import Path
from t2i_feedback import mllm
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.base import Request
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
entry = EndpointEntry(**json.loads(sys.argv[1]))
with mllm.connect("gpt", entry, Path(sys.argv[2])) as model:
    model.generate([Request(f"question {i:03}") for i in range(400)])
"""


def test_kill_9_loses_no_more_than_the_calls_in_flight(path: Path) -> None:
    with running() as server:
        server.delay = 0.05
        wanted = entry(server, concurrency=4)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            [sys.executable, "-c", ASK_FOREVER, json.dumps(wanted.model_dump()), str(path)], env=environment
        )
        while len(server.seen) < 40:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        asked = len(server.seen)
        with sqlite3.connect(path) as connection:
            (kept,) = connection.execute("SELECT COUNT(*) FROM answers WHERE status = 'valid'").fetchone()
        assert asked - 4 <= kept <= asked
        server.delay = 0.0
        with mllm.connect("gpt", wanted, path) as model:
            assert len(model.generate([Request(f"question {i:03}") for i in range(400)])) == 400
        assert len(server.seen) == asked + 400 - kept


# ------------------------------------------------------------------------------------------------ damaged, forgotten


@pytest.mark.parametrize("content", [b"no database at all, " * 300, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_ledger_is_one_line_with_a_remedy(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"the ledger {path} is damaged.*move it away") as raised:
        Ledger(path)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == content


def test_a_ledger_that_is_cut_short_is_one_line(path: Path) -> None:
    model(path, Echo()).generate([Request(f"question {i} " * 50, role="enhance") for i in range(200)])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    Path(f"{path}-wal").unlink(missing_ok=True)
    Path(f"{path}-shm").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"the ledger .* is damaged"):
        Ledger(path).summary()


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"status": "valid"}', '{"status": "??", "text": "x"}', '{"text": 5}'])
def test_an_answer_that_cannot_be_read_is_asked_again(path: Path, kept: str) -> None:
    model(path, Echo()).generate(requests("a", "b"))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET reply = ? WHERE rowid = 1", (kept,))
    again = Echo()
    assert len(model(path, again).generate(requests("a", "b"))) == 2
    assert len(again.asked) == 1
    assert Ledger(path).summary()[0][2] == 3


def test_an_entry_is_forgotten_with_its_valid_answers_and_no_other(path: Path) -> None:
    first, second = Echo(), Echo()
    Ledgered(ENTRY, "first", lambda: first, Ledger(path)).generate(requests("a", "b"))
    Ledgered(ENTRY, "second", lambda: second, Ledger(path)).generate(requests("a"))
    assert Ledger(path).forget("first", "elsewhere") == (2, [])
    for identity, echo in (("first", first), ("second", second)):
        Ledgered(ENTRY, identity, lambda echo=echo: echo, Ledger(path)).generate(requests("a"))
    assert (first.asked, second.asked) == (["a", "b", "a"], ["a"])
