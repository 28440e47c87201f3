"""What makes a pipeline execution another run of MLflow: its code, its data, its parameters and its checkpoints."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_feedback.foundation import files, lockfile, params, paths, pipeline

VALUE_LIMIT = 6000  # characters of a parameter that MLflow keeps
KEY, NAME = "t2i.key", "t2i.dvc_exp_name"  # tags
Parameters = Mapping[str, Any]  # what params.yaml holds


@dataclass(frozen=True)
class Identity:
    """What makes a pipeline execution itself: the bytes of dvc.yaml and of all code and data that its stages take and
    none of them makes, the parameters in use, and the checkpoints that they name. The commit is told and counts not:
    the same bytes are the same run, committed or not, in a repository or not."""

    code: str
    params: str
    checkpoints: str
    sha: str  # of git's commit; "none" where git knows none
    name: str  # DVC_EXP_NAME, "" outside of `dvc exp run`

    @property
    def key(self) -> str:
        return files.text_digest(json.dumps([self.code, self.params, self.checkpoints]))[:16]

    @property
    def tags(self) -> dict[str, str]:
        known = {KEY: self.key, "git.sha": self.sha, "code.digest": self.code, "params.digest": self.params}
        return known | ({NAME: self.name} if self.name else {})


def identify(parameters: Parameters, checkpoints: Mapping[str, str], sha: str = "", name: str = "") -> Identity:
    """Of the current directory. dvc.lock and results change while DVC runs and do not count.

    `checkpoints` are the digests of those that the parameters name. Of a finished experiment: `sha` is the commit that
    it started from, `name` DVC's for it; its code is known to be the one here.
    """
    return Identity(
        code=files.combined(_taken())[:16],
        params=files.combined(flatten(parameters))[:16],
        checkpoints=files.combined(checkpoints)[:16],
        sha=sha or _git("rev-parse", "HEAD").strip() or "none",
        name=name or os.environ.get("DVC_EXP_NAME", ""),
    )


def _taken() -> dict[str, str]:
    """What stages take and none makes -> its digest. Of a data set, which may be large, it is what DVC has noted."""
    noted = {dep["path"]: dep.get("md5", "") for entry in lockfile.entries() for dep in entry.get("deps", [])}

    def digest(dep: str) -> str:
        own = dep.startswith(("src/", "models/")) or Path(dep).is_file()
        return files.digest(Path(dep)) if own and Path(dep).exists() else noted.get(dep, "")

    return {dep: digest(dep) for dep in pipeline.code()}


def checked() -> dict[str, str]:
    """Key -> digest of the checkpoint that it names, as stage `check` has left them."""
    found = sorted(paths.CHECKED.glob("*")) if paths.CHECKED.exists() else []
    return {path.name: path.read_text(encoding="utf-8").strip() for path in found if path != paths.IN_ORDER}


def _git(*arguments: str) -> str:
    """What git prints; nothing outside of a repository or before its first commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def flatten(parameters: Parameters) -> dict[str, str]:
    """Dotted key -> text, cut at MLflow's limit, of the parameters that some stage of dvc.yaml lists."""
    listed = {key for stage in pipeline.stages() for key in stage.params}
    return {
        key: str(value)[:VALUE_LIMIT]
        for key, value in params.leaves(parameters)
        if any(f"{key}.".startswith(f"{one}.") for one in listed)
    }
