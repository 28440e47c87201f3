"""A program: the sha256 of everything that the default run makes, so that a change of the code can be proven harmless.

    python tests/support/bytes_of_run.py > before        # in a clone where `make repro` has run
    python tests/support/bytes_of_run.py | diff before -  # on the same machine, after the change

Images, rows, features, metrics, series of plots and the adapter are listed; the report and drawings of plots are not,
which are words and images about them.
"""

import hashlib
import sys
from pathlib import Path

MADE = (
    "data/dataset/*.jsonl",
    "data/dataset/images/*",
    "data/prompts/*.jsonl",
    "data/calibration/*.jsonl",
    "data/reference/features.safetensors",
    "data/arms/*/*.jsonl",
    "data/arms/*/images/*.png",
    "data/evaluation/*/*.jsonl",
    "data/evaluation/*/features.safetensors",
    "models/lora/*",
    "data/*/numbers.json",
    "data/evaluation/*/numbers.json",
    "metrics/*.json",
    "metrics/plots/*.csv",
)


def main() -> None:
    for pattern in MADE:
        found = sorted(Path().glob(pattern))
        if not found:
            sys.exit(f"nothing is called {pattern} here: run `make repro` first")
        for path in found:
            print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main()
