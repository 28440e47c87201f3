"""Every answer that a model ever gave, in one SQLite file: nothing is asked twice, and what it cost stands beside it.

    python -m t2i_feedback.mllm.ledger      calls, hits, failures, tokens, seconds and cost per role and model

An answer is kept under a hash of all that it depends on. Refusals and answers that cannot be read are answers too; a
call that was lost on the way is noted as a failure and asked again the next time.
"""

import fcntl
import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from t2i_feedback.mllm.base import Backend, Decoding, Reply, Request, cost_usd
from t2i_feedback.params import EndpointEntry, LocalEntry

BUSY_SECONDS = 60  # how long a process waits for another one's write
KEYS_PER_QUERY = 500
MANY = 64  # from so many open questions on, progress is shown

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT, role TEXT, status TEXT, reply TEXT,
    tokens_in INTEGER, tokens_out INTEGER, seconds REAL, cost_usd REAL, created TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS failures (
    key TEXT, model TEXT, role TEXT, status TEXT, reason TEXT, created TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS hits (model TEXT, role TEXT, count INTEGER, PRIMARY KEY (model, role));
"""

_KEEP_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, CURRENT_TIMESTAMP)"
_NOTE_FAILURE = "INSERT INTO failures VALUES (?, ?, ?, ?, ?, CURRENT_TIMESTAMP)"

_SUMMARY = """
WITH accounts AS (
    SELECT role, model, 1 AS calls, 0 AS hits, status, tokens_in, tokens_out, seconds, cost_usd FROM answers
    UNION ALL SELECT role, model, 1, 0, status, 0, 0, 0, 0 FROM failures
    UNION ALL SELECT role, model, 0, count, NULL, 0, 0, 0, 0 FROM hits
)
SELECT role, model, SUM(calls), SUM(hits), SUM(status = 'refusal'), SUM(status = 'unparseable'),
       SUM(status = 'truncated'), SUM(status = 'transport'),
       SUM(tokens_in), SUM(tokens_out), SUM(seconds), SUM(cost_usd)
FROM accounts GROUP BY role, model ORDER BY role, model
"""

_TITLES = ("role", "model", "calls", "hits", "refusal", "unparseable", "truncated", "transport")
_COLUMNS = (*_TITLES, "tokens in", "tokens out", "seconds", "cost $")


class Ledger:
    """The file. A connection per operation: threads and processes may share it."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:  # SQLite does not wait when two switch to WAL at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._connection() as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_SCHEMA)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there, by key."""
        found: dict[str, Reply] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                query = f"SELECT key, reply FROM answers WHERE key IN ({','.join('?' * len(some))})"
                found |= {key: Reply(**json.loads(reply)) for key, reply in connection.execute(query, some)}
        return found

    def keep(self, model: str, entries: Sequence[tuple[str, str, Reply, float]]) -> None:
        """Store (key, role, reply, cost in dollars), on disk when this returns."""
        lost = [(key, model, role, r.status, r.text) for key, role, r, _ in entries if r.status == "transport"]
        answered = [
            (key, model, role, r.status, json.dumps(asdict(r)), r.tokens_in, r.tokens_out, r.seconds, cost)
            for key, role, r, cost in entries
            if r.status != "transport"
        ]
        with self._connection() as connection:
            connection.executemany(_NOTE_FAILURE, lost)
            connection.executemany(_KEEP_ANSWER, answered)

    def count_hits(self, model: str, role: str, count: int) -> None:
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO hits VALUES (?, ?, ?) "
                "ON CONFLICT (model, role) DO UPDATE SET count = count + excluded.count",
                (model, role, count),
            )

    def summary(self) -> list[tuple]:
        """One row per role and model, in the order of the table's columns."""
        with self._connection() as connection:
            return connection.execute(_SUMMARY).fetchall()


class Ledgered:
    """A model behind the ledger. The backend is loaded when the first question is really asked."""

    def __init__(self, entry: LocalEntry | EndpointEntry, identity: str, load: Callable[[], Backend], ledger: Ledger):
        self._entry, self._identity, self._load, self._ledger = entry, identity, load, ledger
        self._backend: Backend | None = None

    @property
    def templates(self) -> str:
        return self._entry.templates

    def generate(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> list[Reply]:
        return self._answer(requests, Decoding(max_new_tokens or self._entry.max_new_tokens))

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        return self._answer(requests, Decoding(self._entry.max_new_tokens, candidates))

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
        keys = [_key(self._identity, request, decoding) for request in requests]
        replies = self._ledger.find(list(dict.fromkeys(keys)))
        open_requests = {key: r for key, r in zip(keys, requests, strict=True) if key not in replies}
        if requests and len(open_requests) < len(requests):
            self._ledger.count_hits(self._entry.model, requests[0].role, len(requests) - len(open_requests))
        if open_requests:
            replies |= self._ask(open_requests, decoding)
        return [replies[key] for key in keys]

    def _ask(self, open_requests: dict[str, Request], decoding: Decoding) -> dict[str, Reply]:
        """Ask what is not in the ledger; every group of answers is kept as soon as it comes."""
        if self._backend is None:
            self._backend = self._load()
        asked = sorted(open_requests.items(), key=lambda item: len(item[1].text))  # batches of like length
        replies: dict[str, Reply] = {}
        role = asked[0][1].role
        with tqdm(total=len(asked), desc=role, unit=" answers", disable=len(asked) < MANY, mininterval=1) as progress:
            for group in self._backend.answers([request for _, request in asked], decoding):
                found = [(asked[i][0], role, reply, cost_usd(self._entry, reply)) for i, reply in group]
                self._ledger.keep(self._entry.model, found)
                replies |= {key: reply for key, _, reply, _ in found}
                progress.update(len(found))
        return replies


def _key(identity: str, request: Request, decoding: Decoding) -> str:
    image = None if request.image is None else _pixels(request.image)
    parts = [identity, request.text, image, decoding.candidates, decoding.max_new_tokens, request.sample]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")


def _table(rows: Sequence[tuple]) -> str:
    """Text to the left, numbers to the right."""
    cells = [_COLUMNS, *(tuple(_cell(value) for value in row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    layout = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*line) for line in cells)


if __name__ == "__main__":
    from t2i_feedback import paths

    where = Path(sys.argv[1]) if len(sys.argv) > 1 else paths.ledger()
    print(_table(Ledger(where).summary()) if where.exists() else f"{where}: nothing was asked yet.")
