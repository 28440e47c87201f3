"""`make rehearse`: `make table1` and `make table2` in a clone, with stand-ins. Ends with rehearsal/results/.

python -m rehearsal                          # all 13 rows and both of table 2
python -m rehearsal --rows llava15-7b gpt4   # of table 1 these alone, and `raw`
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from rehearsal import clone

RESULTS = Path("rehearsal/results")
WORK = Path(".cache/rehearsal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="entries of the catalogue for table 1; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    arguments = parser.parse_args()
    start = time.monotonic()
    for old in (WORK, RESULTS):
        shutil.rmtree(old, ignore_errors=True)
    problems = []
    with clone.ready(WORK.resolve()) as there:
        rows = [f"ROWS={' '.join(arguments.rows)}"] if arguments.rows else []
        for table in ["table1", *([] if arguments.rows else ["table2"])]:
            code = there.make(table, f"JOBS={arguments.jobs}", *(rows if table == "table1" else []))
            if code:
                problems.append(f"make {table} ended with status {code}")
            problems += kept(there, table, set(arguments.rows))
        drawn = there.times_run("generate@raw")
        if drawn != 1:
            problems.append(f"the raw arm was drawn {drawn} times, not once")
        print(f"the raw arm was drawn {drawn} time(s); finetune ran {there.times_run('finetune')} time(s)")
    print(f"rehearsal: {(time.monotonic() - start) / 60:.1f} minutes; tables in {RESULTS}, the clone in {WORK}/clone")
    print(f"its runs: MLFLOW_TRACKING_URI=sqlite:///{WORK}/clone/mlflow.db make ui")
    if problems:
        sys.exit("rehearsal: " + "; ".join(problems))


def kept(there: clone.Clone, table: str, rows: set[str]) -> list[str]:
    """Copy a table out of the clone. What is wrong with it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for file in (there.folder / "metrics").glob(f"{table}.*"):
        shutil.copyfile(file, RESULTS / file.name)
    made = RESULTS / f"{table}.json"
    if not made.exists():
        return [f"{table} was not written"]
    content = json.loads(made.read_text())
    gone = [
        f"{table}: {' / '.join(row['names'])} is missing ({row['missing']})"
        for row in content["rows"]
        if row["missing"] and (not rows or row["experiment"] in rows | {"raw"})
    ]
    return gone + ([] if content["stamp"] == "REHEARSAL" else [f"{table} is not stamped"])


if __name__ == "__main__":
    main()
