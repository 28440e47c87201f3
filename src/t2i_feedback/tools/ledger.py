"""What the MLLMs were asked: calls, hits, failures, tokens, seconds and cost per role and model.

python -m t2i_feedback.tools.ledger                  the table
python -m t2i_feedback.tools.ledger --retry-failed   forget the answers that are not valid and run their stages again
python -m t2i_feedback.tools.ledger --forget ENTRY   forget all answers of an entry of the catalogue, valid ones too
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm.ledger import Ledger
from t2i_feedback.tools.arguments import Arguments

TITLES = ("role", "model", "calls", "hits", "refusal", "unparseable", "truncated", "transport")
COLUMNS = (*TITLES, "tokens in", "tokens out", "seconds", "cost $", "of thinking")


def table(rows: Sequence[tuple]) -> str:
    """Text to the left, numbers to the right."""
    cells = [COLUMNS, *(tuple(_cell(value) for value in row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    layout = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*line) for line in cells)


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")


def retry_failed(ledger: Ledger) -> int:
    """Run the stages again whose answers failed, which DVC does not see to be stale. The first status that is not 0.

    A stage that ends badly keeps its failures open, and those after it are run all the same.
    """
    count, stages = ledger.failed()
    print(f"{count} failed answers will be asked again" if count else "no answer has failed")
    first_status = 0
    for stage in stages:
        last = ledger.forget_failed(stage)
        if not stage:
            print("some were asked by a program that is no stage of dvc.yaml: run it again")
        else:
            print(f"dvc repro -s -f {stage}", flush=True)
            if status := subprocess.run([sys.executable, "-m", "dvc", "repro", "-s", "-f", stage]).returncode:
                first_status = first_status or status
                continue
        ledger.close_failed(stage, last)
    if any(stages):
        print("what depends on them is run by `dvc repro`")
    return first_status


def forget(ledger: Ledger, name: str) -> None:
    """Raises UserError when the catalogue has no such entry."""
    catalogue = params.load().mllms
    if name not in catalogue:
        raise UserError(f"ENTRY: the catalogue mllms has no {name!r}; it has {', '.join(sorted(catalogue))}")
    entry = catalogue[name]
    count, stages = ledger.forget(entry.access(name, ledger).identity, entry.model)
    ledger.forget_notes(entry.account)
    print(f"{count} answers of {name} forgotten; what was spent stays counted")
    if stages:
        print(f"stages that have used them: `dvc repro -f {' '.join(stages)}` asks again")


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=paths.ledger(), help="the ledger (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="ask failed questions again and rerun their stages")
    parser.add_argument("--forget", metavar="ENTRY", help="forget all answers of an entry, valid ones too")
    arguments = parser.parse_args()
    if not arguments.path.exists():
        print(f"{arguments.path}: nothing was asked yet.")
    elif arguments.retry_failed:
        sys.exit(retry_failed(Ledger(arguments.path)))
    elif arguments.forget is not None:
        forget(Ledger(arguments.path), arguments.forget)
    else:
        print(table(Ledger(arguments.path).summary()))


if __name__ == "__main__":
    running.run(main)
