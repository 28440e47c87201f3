"""Where MLflow keeps runs, and how it is reached. The metrics on disk are the record; MLflow is a view of them.

Whatever MLflow does (down, slow, locked), no stage stops and nothing is lost: one warning, and `make publish` brings it
up to date later.

    python -m t2i_feedback.tracking.store    # make the database and the experiment, so that no stage has to

Environment: MLFLOW_TRACKING_URI (else a SQLite file in the repository's root), T2I_NO_TRACKING (any value: off).
"""

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from t2i_feedback.foundation import distributed, files, paths
from t2i_feedback.foundation.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

EXPERIMENT = "t2i-feedback"
# MLflow would otherwise try for minutes; seconds are enough for a server that is there.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
WORDS = ("databricks", "databricks-uc", "uc")  # servers that MLflow knows by a word, which is no folder then
# Table -> its column of absolute addresses of artifacts, in MLflow's database.
ADDRESSES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")  # variables that MLflow reads


def wanted() -> bool:
    """False when T2I_NO_TRACKING is set, and in all but the first process of a launch."""
    return not os.environ.get("T2I_NO_TRACKING") and distributed.is_main()


def uri() -> str:
    """Where runs are kept. A relative path means the repository's root, also in the folder of a temporary run, where
    what is written goes away with it."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = given.partition(":///")
    if separator and scheme.startswith("sqlite") and not path.startswith("/"):
        return _in_root(scheme, path)
    folder = given.removeprefix("file:")
    if given in WORDS or ":" in folder or folder.startswith("/"):
        return given
    return (paths.root() / folder).as_uri()


def _in_root(scheme: str, path: str) -> str:
    """Of a SQLite file. Only what SQLAlchemy would read otherwise is quoted: of a quoted path MLflow makes the folder
    as it is written, unless a driver is named."""
    root = str(paths.root())
    quoted = root.replace("%", "%25").replace("?", "%3F")
    driver = "+pysqlite" if quoted != root and scheme == "sqlite" else ""
    return f"{scheme}{driver}:///{quoted}/{path}"


def served() -> bool:
    """Whether a server keeps the runs, which has its own place for artifacts and its own UI."""
    return not re.match(r"(sqlite|postgresql|mysql|mssql|file)[+:]|/", uri())


def refuse_folder() -> None:
    """Raise UserError where MLflow would say the same in many words."""
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if re.match("file:|/", uri()) and not allowed:
        raise UserError(
            "MLflow keeps runs in a database or on a server, in no plain folder: "
            "set MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
        )


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """First uses of one SQLite file race its migrations, and two seekers of a run would both make it."""
    with files.locked(paths.cache() / "mlflow.lock"):
        yield


def connect() -> tuple["MlflowClient", str]:
    """The client and the experiment's id; makes the database and the experiment on first use."""
    refuse_folder()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # of a run's end: a server's, password and all
    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    from mlflow.tracking import MlflowClient

    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # an error is raised as well, and told by `warn`
    with one_at_a_time():
        client = MlflowClient(uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
                print(f"the MLflow experiment {EXPERIMENT} had been deleted, and is restored", file=sys.stderr)
            _bring_along(experiment)
            return client, experiment.experiment_id
        return client, client.create_experiment(EXPERIMENT, None if served() else _artifacts())


def _artifacts() -> str:
    return (paths.root() / "mlartifacts").as_uri()


def database() -> Path | None:
    """The SQLite file in which runs are kept, if it is one."""
    scheme, _, place = uri().partition(":///")
    return Path(unquote(place.partition("?")[0])) if scheme.startswith("sqlite") else None


def _bring_along(experiment: "Experiment") -> None:
    """Give the records that a repository has brought along, copied or moved, the address that its artifacts have now:
    else they would be read and written in the folder that they were made in, which may be another's."""
    file, here, there = database(), _artifacts(), experiment.artifact_location
    ours = file and file.resolve().is_relative_to(paths.root())
    if not file or not ours or there == here or not re.fullmatch(r"file:.*/mlartifacts", there):
        return
    with closing(sqlite3.connect(file, timeout=60)) as records, records:
        for table, column in ADDRESSES.items():
            records.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE experiment_id = ? AND substr({column}, 1, ?) = ?",
                (here, len(there) + 1, experiment.experiment_id, len(there), there),
            )
    print(f"this repository was copied or moved: MLflow's artifacts are in {here}, not in {there}", file=sys.stderr)


def warn(error: Exception) -> None:
    """One line that says what to do."""
    reason = " ".join(shown(str(error)).split())[:160]
    print(
        f"warning: MLflow at {shown(uri())} did not take this: {reason}; publish again with `make publish`",
        file=sys.stderr,
    )


def shown(text: str) -> str:
    """Without passwords: that of the URI, also where its "@" and "/" are not encoded, and the environment's."""
    found = re.search(r"://([^/:]*(?::(.*))?)@", uri())
    login, password = (found[1], found[2] or "") if found else ("", "")
    for form in (login, unquote(login)) if login else ():
        text = text.replace(f"{form}@", "")
    text = re.sub(r"://[^/\s]*@", "://", text)
    text = re.sub(r"(password=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)
    for secret in _secrets(password):
        text = text.replace(secret, "***")
    return text


def _secrets(password: str) -> list[str]:
    """What else may stand in a library's message: the password in parts, as one that reads the URI otherwise has it,
    and the environment's secrets."""
    parts = [password, *re.split("[@/:?#]", password)]
    found = {*parts, *map(unquote, parts), *(os.environ.get(name, "").strip() for name in SECRETS)}
    return sorted((one for one in found if len(one) > 2), key=len, reverse=True)  # less would be found in any word


if __name__ == "__main__":
    try:
        connect()
    except Exception as error:  # its traceback would show the password
        warn(error)
        sys.exit(1)
