"""How a program ends that has others running in sessions of their own, which no signal of the terminal reaches."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # of `kill`, and of a terminal that is closed


@contextmanager
def unwound() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise SystemExit, as Ctrl-C raises KeyboardInterrupt, so that `finally` is reached.

    What is ignored stays ignored, as under nohup. For the main thread."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
