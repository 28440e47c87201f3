"""Seconds and peak memory of every stage of the default run, and of a repeated one.

    make bench            # forces every stage to run again (about as long as the first `make repro`)

The models are asked anew: answers of earlier runs are put aside until the end. Nothing is asserted: the figures are
printed, and written to benchmarks/pipeline.json beside the machine's core count.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESULT = Path("benchmarks/pipeline.json")
CACHE = Path(".cache")
ASIDE = CACHE / "before-bench"


@contextmanager
def empty_ledger() -> Iterator[None]:
    """Answers of earlier runs would make stages look faster than they are in a fresh clone."""
    if ASIDE.exists():
        sys.exit(f"{ASIDE} holds the ledger that an interrupted `make bench` put aside: move its files back to {CACHE}")
    ASIDE.mkdir(parents=True)
    for file in CACHE.glob("ledger.sqlite*"):
        file.rename(ASIDE / file.name)
    try:
        yield
    finally:
        for file in CACHE.glob("ledger.sqlite*"):
            file.unlink()
        for file in ASIDE.iterdir():
            file.rename(CACHE / file.name)
        ASIDE.rmdir()


def run(*command: str) -> tuple[float, int]:
    """Run a command; return its wall-clock seconds and the largest resident size in MiB of any process under it."""
    started = time.monotonic()
    status = subprocess.run([sys.executable, "-c", _WRAPPER, *command], stdout=subprocess.PIPE, text=True)
    if status.returncode:
        sys.exit(f"{' '.join(command)} failed with status {status.returncode}")
    return time.monotonic() - started, int(re.findall(r"PEAK_KIB (\d+)", status.stdout)[-1]) // 1024


_WRAPPER = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode; "
    "print('PEAK_KIB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def main() -> None:
    stages = subprocess.run(["dvc", "stage", "list", "--name-only"], capture_output=True, text=True, check=True)
    figures = {}
    with empty_ledger():
        for stage in stages.stdout.split():
            seconds, peak = run("dvc", "repro", "--force", "--single-item", stage)
            figures[stage] = {"seconds": round(seconds, 1), "peak_mib": peak}
            print(f"{stage:22s} {seconds:7.1f} s {peak:6d} MiB", flush=True)
    repeated, _ = run("dvc", "repro")
    total = sum(figure["seconds"] for figure in figures.values())
    peak = max(figure["peak_mib"] for figure in figures.values())
    print(f"{'whole':22s} {total:7.1f} s {peak:6d} MiB\n{'repeated':22s} {repeated:7.1f} s")
    summary = {
        "cores": os.cpu_count(),
        "seconds": round(total, 1),
        "peak_mib": peak,
        "repeated_seconds": round(repeated, 1),
    }
    RESULT.write_text(json.dumps(summary | {"stages": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
