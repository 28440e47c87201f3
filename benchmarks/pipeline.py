"""Seconds of every stage of the default run, start-up (imports) and work apart, its peak memory; and of a second run.

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

import networkx
from dvc.repo import Repo

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


def run(*command: str) -> tuple[float, float, int]:
    """Run a command; return its wall-clock seconds, those that the stage under it took to import its modules, and the
    largest resident size in MiB of any process under it."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    wrapper = [sys.executable, "-c", _WRAPPER, *command]
    imports, peak, of_stage = 0.0, 0, False
    with subprocess.Popen(
        wrapper, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as running:
        for line in running.stdout or ():
            if found := _IMPORT.match(line):
                imports += int(found[1]) / 1e6 if of_stage and not found[2].strip().startswith(OF_DVC) else 0
            elif line.startswith("PEAK_KIB "):
                peak = int(line.split()[1]) // 1024
            else:
                of_stage = of_stage or line.startswith("Running stage")
                print(line, end="", file=sys.stderr)
    if running.returncode:
        sys.exit(f"{' '.join(command)} failed with status {running.returncode}")
    return time.monotonic() - started, imports, peak


_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|(.*)")  # as Python prints it with PYTHONPROFILEIMPORTTIME
OF_DVC = ("dvc", "scmrepo", "pygit2", "dulwich", "fsspec", "shortuuid", "funcy", "networkx")  # which goes on beside it
_WRAPPER = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
    "print('PEAK_KIB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def in_order() -> list[str]:
    """All stages, each after those that it depends on, so that a clone in which nothing has run yet will do."""
    graph = Repo().index.graph  # from a stage to what it depends on
    return [stage.addressing for stage in reversed(list(networkx.topological_sort(graph)))]


def main() -> None:
    figures = {}
    with empty_ledger():
        for stage in in_order():
            seconds, imports, peak = run("dvc", "repro", "--force", "--single-item", stage)
            parts = {"seconds": seconds, "startup_seconds": imports, "work_seconds": seconds - imports}
            figures[stage] = {name: round(value, 1) for name, value in parts.items()} | {"peak_mib": peak}
            print(f"{stage:22s} {seconds:7.1f} s, {imports:5.1f} s start-up {peak:6d} MiB", flush=True)
    repeated, _, _ = run("dvc", "repro")
    total = sum(figure["seconds"] for figure in figures.values())
    startup = sum(figure["startup_seconds"] for figure in figures.values())
    peak = max(figure["peak_mib"] for figure in figures.values())
    print(f"{'whole':22s} {total:7.1f} s, {startup:5.1f} s start-up {peak:6d} MiB\n{'repeated':22s} {repeated:7.1f} s")
    summary = {
        "cores": os.cpu_count(),
        "seconds": round(total, 1),
        "startup_seconds": round(startup, 1),
        "peak_mib": peak,
        "repeated_seconds": round(repeated, 1),
    }
    RESULT.write_text(json.dumps(summary | {"stages": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
