"""MLflow, and the only importer of it. The metrics on disk are the record; MLflow is a view of them.

Whatever MLflow does (down, slow, locked), no stage stops and nothing is lost: one warning, and `python -m
t2i_feedback.tracking.publish` brings it up to date later. One parent run stands for one state of code and parameters;
`finetune` streams into a child of it.

Environment: MLFLOW_TRACKING_URI (else a SQLite file in the repository's root), T2I_NO_TRACKING (any value: off).
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import distributed, files, lockfile, params, paths, pipeline

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "t2i-feedback"
VALUE_LIMIT = 6000  # characters of a parameter that MLflow keeps
BATCH = 100  # parameters per request that MLflow takes; metrics may be 1000
KEY, NAME, STAGE, PARENT = "t2i.key", "t2i.dvc_exp_name", "t2i.stage", "mlflow.parentRunId"
STAMP = "t2i.stamp"
# MLflow would otherwise try for minutes; seconds are enough for a server that is there.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def wanted() -> bool:
    """False when T2I_NO_TRACKING is set, and in all but the first process of a launch."""
    return not os.environ.get("T2I_NO_TRACKING") and distributed.is_main()


def uri() -> str:
    """Where runs are kept. A relative path means the repository's root, also in the folder of a temporary run, where
    what is written goes away with it."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = given.partition(":///")
    if separator and scheme.startswith("sqlite") and not path.startswith("/"):
        return f"{scheme}:///{paths.root() / path}"
    folder = given.removeprefix("file:") if ":" not in given.removeprefix("file:") else ""
    if folder and not folder.startswith("/"):
        return (paths.root() / folder).as_uri()
    return given


# ------------------------------------------------------------------------------------------------ which run


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


Parameters = Mapping[str, Any]  # what params.yaml holds


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
        for key, value in _leaves(parameters)
        if any(f"{key}.".startswith(f"{one}.") for one in listed)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ------------------------------------------------------------------------------------------------ the store


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """First uses of one SQLite file race its migrations, and two seekers of a run would both make it."""
    with files.locked(paths.cache() / "mlflow.lock"):
        yield


def _connect() -> tuple["MlflowClient", str]:
    """The client and the experiment's id; makes the database and the experiment on first use."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    from mlflow.tracking import MlflowClient

    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with _one_at_a_time():
        client = MlflowClient(uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
                print(f"the MLflow experiment {EXPERIMENT} had been deleted, and is restored", file=sys.stderr)
            return client, experiment.experiment_id
        served = uri().startswith(("http://", "https://"))  # a server has its own place for artifacts
        place = None if served else (paths.root() / "mlartifacts").as_uri()
        return client, client.create_experiment(EXPERIMENT, place)


def setup() -> None:
    """Make the database and the experiment, so that no stage has to."""
    _connect()


class Run:
    """A run of the tracking server, written to so that writing the same twice changes nothing."""

    def __init__(self, client: "MlflowClient", experiment: str, run_id: str):
        self._client, self._experiment, self.run_id = client, experiment, run_id

    def child(self, stage: str) -> "Run":
        """The run of one stage under this one, open for writing."""
        run = _find_or_create(self._client, self._experiment, {PARENT: self.run_id, STAGE: stage}, stage)
        self._client.update_run(run.run_id, status="RUNNING")
        return run

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics of one step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def replay(self, series: Mapping[int, Mapping[str, float]]) -> None:
        """Metrics by step, but only those that the run does not have yet."""
        names = {name for numbers in series.values() for name in numbers}
        names &= self._client.get_run(self.run_id).data.metrics.keys()
        held = {(m.key, m.step, m.value) for name in names for m in self._client.get_metric_history(self.run_id, name)}
        for step, numbers in series.items():
            new = {name: value for name, value in numbers.items() if (name, step, value) not in held}
            if new:
                self.log(step, new)

    def note(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), BATCH):
            self._client.log_batch(self.run_id, params=items[start : start + BATCH])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Words that may be changed later."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def keep(self, files: Iterable[Path], folder: str | None = None) -> None:
        """Files and whole folders as artifacts."""
        for path in files:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)


def _find_or_create(client: "MlflowClient", experiment: str, tags: Mapping[str, str], name: str) -> Run:
    """The newest run with these tags, as far as they identify one, else a new run."""
    terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items() if key in (KEY, NAME, STAGE, PARENT)]
    order = ["attributes.start_time DESC"]
    with _one_at_a_time():
        found = client.search_runs([experiment], " and ".join(terms), max_results=1, order_by=order)
        run = found[0] if found else client.create_run(experiment, tags=dict(tags), run_name=name)
    return Run(client, experiment, run.info.run_id)


def parent_run(parameters: Parameters | None = None, identity: Identity | None = None) -> Run:
    """The run of these parameters, by default of the workspace's present state. Outside of `dvc exp run` it is found
    whatever its experiment's name."""
    parameters = params.read() if parameters is None else parameters
    identity = identity or identify(parameters, checked())
    name = identity.name or f"{identity.code[:7]} {identity.params[:7]}"
    run = _find_or_create(*_connect(), {**identity.tags, STAGE: "pipeline"}, name)
    run.note(flatten(parameters))
    if stamp := params.at(parameters, "report.stamp"):
        run.tag({STAMP: stamp})
    return run


# ------------------------------------------------------------------------------------------------ streaming


class Stream:
    """Metrics of a running stage, step by step. The first failure ends the stream, not the stage."""

    def __init__(self, run: Run | None):
        self._run = run

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._run:
            try:
                self._run.log(step, numbers)
            except Exception as error:  # MLflow, SQLAlchemy, requests and the disk each raise their own
                self._run = None
                warn(error)

    def finish(self, status: str) -> None:
        if self._run:
            try:
                self._run.finish(status)
            except Exception as error:
                warn(error)


@contextmanager
def stage_run(stage: str) -> Iterator[Stream]:
    """A child run for one stage, under the parent of this state; an interrupted stage goes on in the same child."""
    stream = Stream(_child(stage) if wanted() else None)
    try:
        yield stream
    except BaseException as error:
        stream.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    stream.finish("FINISHED")


def _child(stage: str) -> Run | None:
    try:
        return parent_run().child(stage)
    except Exception as error:
        warn(error)
        return None


def warn(error: Exception) -> None:
    """One line that says what to do."""
    reason = shown(" ".join(str(error).split())[:160])
    print(
        f"warning: MLflow at {shown(uri())} did not take this: {reason}; publish again with `make publish`",
        file=sys.stderr,
    )


def shown(text: str) -> str:
    """Without the password that a URI may carry."""
    return re.sub(r"://[^/@\s]*@", "://", text)


if __name__ == "__main__":
    setup()
