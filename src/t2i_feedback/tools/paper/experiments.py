"""DVC experiments as they are kept in git: run one, find a finished one, read what it measured.

Git holds an experiment's params.yaml, dvc.lock and metrics; DVC's cache holds what is too large for git.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_feedback import arms
from t2i_feedback.foundation import checkpoints, lockfile, paths, pipeline, yaml_files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.paper.compare import measured
from t2i_feedback.tools.paper.write import Measured

STARTED = "Reproducing experiment"  # DVC's words when it has put the parameters into the experiment's own folder
_STARTING = threading.Lock()  # until then they stand in the workspace's params.yaml, which another would read


@dataclass(frozen=True)
class Experiment:
    """A finished one."""

    name: str
    rev: str  # its commit
    base: str  # the commit that it started from


def find(name: str, wanted: Mapping[str, Any], digests: Mapping[str, str]) -> Experiment | None:
    """The newest experiment of that name with these parameters, these digests of the checkpoints that they name and the
    workspace's code, whatever it started from."""
    listed = _git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps/")
    for line in listed.splitlines():
        rev, _, ref = line.partition(" ")
        parts = ref.split("/")  # refs, exps, two characters of the baseline, its rest, the name
        if parts[4:] != [name]:
            continue
        same_code = (
            subprocess.run(["git", "diff", "--quiet", rev, "--", *pipeline.code()], capture_output=True).returncode == 0
        )
        same_parameters = same_code and _yaml(rev, paths.PARAMS) == wanted
        if same_parameters and _has_used(digests, rev):
            return Experiment(name, rev, parts[2] + parts[3])
    return None


def _has_used(digests: Mapping[str, str], rev: str) -> bool:
    """Whether stage `check` found these digests of checkpoints in the experiment."""
    checked = _yaml(rev, paths.LOCK)["stages"].get("check", {})
    return lockfile.made_folder(checked, paths.CHECKED, checkpoints.noted(digests))


def _yaml(rev: str, path: Path) -> dict[str, Any]:
    return yaml_files.parse(_git("show", f"{rev}:{path}"), str(path))


class Files:
    """What an experiment made, out of git and DVC's cache, as its own dvc.lock says."""

    def __init__(self, found: Experiment) -> None:
        from dvc.api import DVCFileSystem

        self._files = DVCFileSystem(rev=found.rev)
        self.found = found

    def text(self, path: Path) -> str:
        """Raises UserError when it is no longer in DVC's cache."""
        from dvc.exceptions import DvcException

        try:
            return self._files.read_text(path.as_posix(), encoding="utf-8")
        except (DvcException, OSError) as error:
            why = " ".join(str(error).split())[:120]
            raise UserError(f"{path} of {self.found.name} is no longer in DVC's cache ({why})") from None

    def numbers(self, path: Path) -> dict[str, Any]:
        return json.loads(self.text(path))


def read(files: Files, arm: str, wanted: Mapping[str, Any]) -> Measured | str:
    """An arm's numbers, or why the experiment has none that can be trusted."""
    found = files.found
    locked = _yaml(found.rev, paths.LOCK)["stages"].get(f"evaluate@{arm}")
    if locked is None:
        return f"experiment {found.name} holds no numbers of arm {arm}"
    for key in lockfile.changed(locked, wanted):
        return f"experiment {found.name} measured arm {arm} with another {key}"
    try:
        card, numbers = files.numbers(paths.evaluation(arm) / "card.json"), files.numbers(paths.arm_numbers(arm))
        rows = [json.loads(row) for row in files.text(paths.evaluation(arm) / "per_image.jsonl").splitlines()]
    except UserError as error:
        return str(error)
    return Measured(found.rev, measured(numbers, rows, arms.by_name(arm).has_rounds), card, len(rows))


def run(name: str, settings: Sequence[str], targets: Sequence[str], log: Path) -> str:
    """Run one experiment in a folder of its own. "" when it is done, else the line that says why not.

    An older experiment of that name on the present commit makes room: the caller has found it to be another one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    head = _git("rev-parse", "HEAD").strip()
    _git("update-ref", "-d", f"refs/exps/{head[:2]}/{head[2:]}/{name}")
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name]
    command += [part for setting in settings for part in ("-S", setting)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    with log.open("w", encoding="utf-8") as output:
        print(f"{time.strftime('%F %T')} {' '.join(command)} {' '.join(targets)}", file=output, flush=True)
        with _STARTING:
            running = subprocess.Popen([*command, *targets], stdout=output, stderr=subprocess.STDOUT, env=environment)
            while running.poll() is None and STARTED not in log.read_text(encoding="utf-8", errors="replace"):
                time.sleep(0.2)
        failed = running.wait() != 0
    return reason(log) if failed else ""


def reason(log: Path) -> str:
    """Why the run of this log failed: the last line before DVC's own error, which is the stage's, else DVC's."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
    lines = [line for line in lines if line]
    first = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), len(lines))
    said = [line for line in lines[:first] if not line.startswith((">", "Running stage", "Stage '", "Updating lock"))]
    if said and first and not lines[first - 1].startswith((">", "Running stage", "Updating lock")):
        return said[-1]
    return lines[first] if first < len(lines) else f"it ended without a word; see {log}"


def commit() -> str:
    """The commit that experiments start from. Raises UserError where there is none."""
    head = _git("rev-parse", "--verify", "--quiet", "HEAD").strip()
    if not head:
        raise UserError("experiments need a git repository with a commit: clone this project, or commit once")
    return head


def _git(*arguments: str) -> str:
    """What git prints; nothing when it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace")
    return done.stdout if done.returncode == 0 else ""
