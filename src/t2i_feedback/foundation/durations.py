"""How long a program took on this machine, kept beside the cache, so that the next run can say what to expect."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i_feedback.foundation import distributed, files, paths


@contextmanager
def told(name: str) -> Iterator[None]:
    """Says how long `name` took last time, and at its end how long it took now, which is kept if it succeeded."""
    kept = paths.cache() / "durations" / name
    if distributed.is_main() and (last := _read(kept)) is not None:
        print(f"{name}: took {in_words(last)} here last time", flush=True)
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    if distributed.is_main():
        files.write_text(kept, f"{took:.1f}\n")
        print(f"{name}: took {in_words(took)}", flush=True)


def in_words(seconds: float) -> str:
    """The duration in its two largest units: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def _read(kept: Path) -> float | None:
    """Seconds; None where nothing, or nothing sensible, is kept."""
    try:
        seconds = float(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e8 else None
