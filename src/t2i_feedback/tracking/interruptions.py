"""SIGTERM and Ctrl-C as exceptions, so that what is open in MLflow is ended; never in the middle of a word with MLflow.

A transaction that is left half-way keeps its lock on the database, and then nothing can be ended.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(BaseException):
    """SIGTERM has come."""


_RAISED: dict[int, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}
_shields = 0  # how many `shielded` are open
_waiting: list[int] = []  # signals that came meanwhile


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it SIGTERM raises Terminated; outside of it the signal then has the effect that it had before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _arrived) for number in _RAISED}
    try:
        yield
    except Terminated:
        _restore(before)
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(128 + signal.SIGTERM)  # where the handler before has returned
    finally:
        _restore(before)


@contextmanager
def shielded() -> Iterator[None]:
    """A signal that comes within it is raised at its end."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
        if _waiting and not _shields:
            raise _RAISED[_waiting.pop()]


def _arrived(number: int, frame: object) -> None:
    if _shields:
        _waiting.append(number)
    else:
        raise _RAISED[number]


def _restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
