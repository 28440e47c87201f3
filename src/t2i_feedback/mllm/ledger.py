"""Every answer that a model ever gave, in one SQLite file: nothing is asked twice, and what it cost stands beside it.

An answer is kept under a hash of all that it depends on. Refusals and answers that cannot be read are answers too; a
call that was lost on the way is noted as a failure and asked again the next time.
"""

import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, get_args

from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import Status
from t2i_feedback.mllm.base import Abilities, Reply

BUSY_SECONDS = 60  # how long a process waits for another one's write
KEYS_PER_QUERY = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT, role TEXT, status TEXT, reply TEXT,
    tokens_in INTEGER, tokens_out INTEGER, seconds REAL, cost_usd REAL, created TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS failures (
    key TEXT, model TEXT, role TEXT, status TEXT, reason TEXT, created TEXT DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS hits (model TEXT, role TEXT, count INTEGER, PRIMARY KEY (model, role));
CREATE TABLE IF NOT EXISTS spent (account TEXT PRIMARY KEY, calls INTEGER, cost_usd REAL);
CREATE TABLE IF NOT EXISTS notes (subject TEXT PRIMARY KEY, note TEXT);
CREATE TABLE IF NOT EXISTS abilities (identity TEXT PRIMARY KEY, found TEXT, created TEXT DEFAULT CURRENT_TIMESTAMP);
"""
_LATER_COLUMNS = {  # what files of earlier versions lack
    "answers": {"template": "TEXT", "stage": "TEXT", "identity": "TEXT"},
    "failures": {
        "tokens_in": "INTEGER",
        "tokens_out": "INTEGER",
        "seconds": "REAL",
        "cost_usd": "REAL",
        "template": "TEXT",
        "stage": "TEXT",
        "retried": "INTEGER",
    },
}
_SHARED = "key, model, role, status, tokens_in, tokens_out, seconds, cost_usd, template, stage"
_KEEP_ANSWER = f"INSERT OR IGNORE INTO answers ({_SHARED}, reply, identity) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_NOTE_FAILURE = f"INSERT INTO failures ({_SHARED}, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FAILED = f"INSERT INTO failures ({_SHARED}, created, reason) SELECT {_SHARED}, created, reply"
_NOT_VALID = "FROM answers WHERE status != 'valid' AND COALESCE(stage, '') = ?"
_OPEN_FAILURES = """(
    SELECT key, COALESCE(stage, '') AS stage, created, rowid AS number FROM answers WHERE status != 'valid'
    UNION ALL SELECT key, COALESCE(stage, ''), created, rowid FROM failures
    WHERE retried IS NULL AND key NOT IN (SELECT key FROM answers)
)"""
_TAKE = """
UPDATE spent SET calls = calls + 1
WHERE account = :account AND calls < COALESCE(:max_calls, calls + 1) AND cost_usd < COALESCE(:max_cost, cost_usd + 1)
"""
_SUMMARY = """
WITH accounts AS (
    SELECT role, model, 1 AS calls, 0 AS hits, status, tokens_in, tokens_out, seconds, cost_usd,
           CASE WHEN json_valid(reply) THEN json_extract(reply, '$.tokens_thinking') END AS thinking FROM answers
    UNION ALL SELECT role, model, 1, 0, status, tokens_in, tokens_out, seconds, cost_usd, 0 FROM failures
    UNION ALL SELECT role, model, 0, count, NULL, 0, 0, 0, 0, 0 FROM hits
)
SELECT role, model, SUM(calls), SUM(hits), SUM(status = 'refusal'), SUM(status = 'unparseable'),
       SUM(status = 'truncated'), SUM(status = 'transport'),
       SUM(tokens_in), SUM(tokens_out), SUM(seconds), SUM(cost_usd), COALESCE(SUM(thinking), 0)
FROM accounts GROUP BY role, model ORDER BY role, model
"""


class Entry(NamedTuple):
    """An answer for the ledger. `status` is what the role made of the reply; transport = lost on the way."""

    key: str
    role: str
    template: str
    status: Status
    reply: Reply
    cost_usd: float


class Ledger:
    """The file. Every thread of every process has a connection of its own, so they may share it.

    Connections stay open: when the last one closes, SQLite copies its log into the file and waits for the disk.
    """

    def __init__(self, path: Path):
        self.path = path
        self._own = threading.local()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.with_suffix(".lock")), self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # SQLite does not wait when two switch at once
            connection.executescript(_SCHEMA)
            for table, columns in _LATER_COLUMNS.items():
                there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for column in columns.keys() - there:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {columns[column]}")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed at the end, rolled back on an exception."""
        try:
            if getattr(self._own, "process", None) != os.getpid():  # none yet, or the one that a fork must not use
                self._own.connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
                self._own.connection.execute("PRAGMA synchronous=NORMAL")  # what is committed outlives the process
                self._own.process = os.getpid()
            with self._own.connection as connection:
                yield connection
        except sqlite3.OperationalError as error:  # locked for a minute, read-only, no room
            raise UserError(
                f"the ledger {self.path} cannot be used now ({error}); every answer in it is kept"
            ) from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the ledger {self.path} is damaged, or no ledger at all ({error}): move it away, and what it held is "
                f"asked again; `sqlite3 {self.path} .recover` may save its answers first"
            ) from None

    def find(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there, by key. One that holds NaN or cannot be read goes to the failures, to be asked
        again."""
        found: dict[str, Reply] = {}
        damaged: list[str] = []
        with self._connection() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                query = f"SELECT key, reply FROM answers WHERE key IN ({','.join('?' * len(some))})"
                kept = {key: _reply(text) for key, text in connection.execute(query, some)}
                found |= {key: reply for key, reply in kept.items() if reply is not None}
                damaged += [key for key, reply in kept.items() if reply is None]
            for key in damaged:
                connection.execute(f"{_FAILED} FROM answers WHERE key = ?", (key,))
                connection.execute("DELETE FROM answers WHERE key = ?", (key,))
        return found

    def keep(self, model: str, entries: Sequence[Entry], identity: str = "") -> None:
        """Store answers and note losses, with the DVC stage that asked; safe from `kill -9` when this returns.

        `identity` is the model's, by which `forget` finds its answers.
        """
        stage = os.environ.get("DVC_STAGE", "")
        answered, lost = [], []
        for key, role, template, status, r, cost in entries:
            shared = (key, model, role, status, r.tokens_in, r.tokens_out, r.seconds, cost, template, stage)
            if status == "transport":
                lost.append((*shared, r.text))
            else:
                answered.append((*shared, json.dumps(asdict(r)), identity))
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
        """A row per role and model: role, model, calls, hits, the failures by their status, tokens in and out, seconds,
        dollars, tokens of thinking (which tokens out hold too)."""
        with self._connection() as connection:
            return connection.execute(_SUMMARY).fetchall()

    def failed(self) -> tuple[int, list[str]]:
        """How many failed answers are open, and the stages that asked them, in the order in which they asked first.

        A failure is open until its stage was run again; after that it is told only when it fails again. "" is a program
        that is no stage.
        """
        with self._connection() as connection:
            (count,) = connection.execute(f"SELECT COUNT(DISTINCT key) FROM {_OPEN_FAILURES}").fetchone()
            stages = connection.execute(
                f"SELECT stage FROM {_OPEN_FAILURES} GROUP BY 1 ORDER BY MIN(created), MIN(number)"
            ).fetchall()
            return count, [stage for (stage,) in stages]

    def forget_failed(self, stage: str) -> int:
        """Move the stage's answers that are not valid to the failures; the number of the last failure so far."""
        with self._connection() as connection:
            connection.execute(f"{_FAILED} {_NOT_VALID}", (stage,))
            connection.execute(f"DELETE {_NOT_VALID}", (stage,))
            (last,) = connection.execute("SELECT COALESCE(MAX(rowid), 0) FROM failures").fetchone()
            return last

    def close_failed(self, stage: str, last: int) -> None:
        """The stage was run again: its failures up to number `last` are not open any more."""
        with self._connection() as connection:
            connection.execute(
                "UPDATE failures SET retried = 1 WHERE COALESCE(stage, '') = ? AND rowid <= ?", (stage, last)
            )

    def forget(self, identity: str, model: str) -> tuple[int, list[str]]:
        """Delete all answers of a model, valid ones too, and what was found out about it: how many, and the stages that
        asked. Answers of earlier versions, which noted no identity, are known by the model's name.
        """
        whose = "identity = ? OR (identity IS NULL AND model = ?)"
        with self._connection() as connection:
            stages = connection.execute(
                f"SELECT DISTINCT COALESCE(stage, '') FROM answers WHERE {whose}", (identity, model)
            )
            asked = [stage for (stage,) in stages if stage]
            count = connection.execute(f"DELETE FROM answers WHERE {whose}", (identity, model)).rowcount
            connection.execute("DELETE FROM abilities WHERE identity IN (?, ?)", (identity, f"{identity} text alone"))
        return count, sorted(asked)

    def forget_notes(self, about: str) -> None:
        """Delete what was noted of an account."""
        with self._connection() as connection:
            connection.execute("DELETE FROM notes WHERE substr(subject, 1, ?) = ?", (len(about) + 1, f"{about} "))

    # -------------------------------------------------------------------------------------------- budget, abilities

    def take(self, account: str, max_calls: int | None, max_cost_usd: float | None) -> bool:
        """Count one call on the account; False, and none counted, when its budget is used up."""
        with self._connection() as connection:
            connection.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (account,))
            limits = {"account": account, "max_calls": max_calls, "max_cost": max_cost_usd}
            return connection.execute(_TAKE, limits).rowcount == 1

    def give_back(self, account: str) -> None:
        """Uncount a call that was taken."""
        with self._connection() as connection:
            connection.execute("UPDATE spent SET calls = calls - 1 WHERE account = ?", (account,))

    def pay(self, account: str, cost_usd: float) -> None:
        with self._connection() as connection:
            connection.execute("UPDATE spent SET cost_usd = cost_usd + ? WHERE account = ?", (cost_usd, account))

    def spent(self, account: str) -> tuple[int, float]:
        """Calls and dollars of an account so far."""
        with self._connection() as connection:
            row = connection.execute("SELECT calls, cost_usd FROM spent WHERE account = ?", (account,)).fetchone()
        return row or (0, 0.0)

    def abilities(self, identity: str) -> Abilities | None:
        """What was found out about a backend; None before that."""
        with self._connection() as connection:
            row = connection.execute("SELECT found FROM abilities WHERE identity = ?", (identity,)).fetchone()
        try:
            return Abilities(**json.loads(row[0])) if row else None
        except (ValueError, TypeError):  # written by another version
            return None

    def noted(self, subject: str) -> str | None:
        """What was noted of a subject; None where nothing was."""
        with self._connection() as connection:
            row = connection.execute("SELECT note FROM notes WHERE subject = ?", (subject,)).fetchone()
        return row[0] if row else None

    def note(self, subject: str, note: str) -> None:
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (subject, note))

    def note_abilities(self, identity: str, found: Abilities) -> None:
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO abilities (identity, found) VALUES (?, ?)",
                (identity, json.dumps(asdict(found))),
            )


def _reply(text: object) -> Reply | None:
    """A kept reply; None where it is none, or where its numbers are not finite: earlier versions kept NaN."""
    try:
        fields = json.loads(str(text))
        reply = Reply(**{name: fields[name] for name in fields if name in Reply.__dataclass_fields__})
        numbers = (reply.mass or 0.0, *(reply.probabilities or {}).values())
        sound = reply.status in get_args(Status) and isinstance(reply.text, str)
        return reply if sound and all(math.isfinite(number) for number in numbers) else None
    except (ValueError, TypeError, AttributeError):
        return None
