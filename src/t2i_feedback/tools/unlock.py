"""Mend DVC's own record of who reads and writes what, `.dvc/tmp/rwlock`, where a killed process has left half of it.

`make repro` runs this first. DVC says of such a file that its JSON structure is corrupted, and does nothing more until
it is gone. It is removed when no DVC process works in this repository; a whole one is left to DVC, which knows by
itself that the processes it names have ended.
"""

import json
from pathlib import Path

from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError


def main() -> None:
    record = paths.root() / ".dvc/tmp/rwlock"
    if not record.exists() or is_whole(record):
        return
    if working := dvc_processes(paths.root()):
        raise UserError(f"{record} is damaged, and DVC is at work here (process {working[0]}): wait until it has ended")
    record.unlink(missing_ok=True)
    print(f"{record} was left half-written by a process that was killed, and is removed")


def is_whole(record: Path) -> bool:
    """Whether DVC can read the record."""
    try:
        return isinstance(json.loads(record.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False


def dvc_processes(root: Path) -> list[int]:
    """The process ids of DVC at work in the repository, this one's own ancestors aside."""
    import psutil

    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words, place = process.info["cmdline"] or [], process.info["cwd"]
        names = {Path(word).name for word in words[:3]}
        if "dvc" in names and place and Path(place).is_relative_to(root) and process.pid not in own:
            found.append(process.pid)
    return found


if __name__ == "__main__":
    running.run(main)
