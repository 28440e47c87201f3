"""Where MLflow keeps runs, and how it is reached. The metrics on disk are the record; MLflow is a view of them.

Whatever MLflow does (down, slow, locked), no stage stops and nothing is lost: one warning, and `make publish` brings it
up to date later.

    python -m t2i_feedback.tracking.store    # make the database and the experiment, so that no stage has to

Environment: MLFLOW_TRACKING_URI (else a SQLite file in the repository's root), T2I_NO_TRACKING (any value: off).
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t2i_feedback.foundation import distributed, files, paths

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "t2i-feedback"
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


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """First uses of one SQLite file race its migrations, and two seekers of a run would both make it."""
    with files.locked(paths.cache() / "mlflow.lock"):
        yield


def connect() -> tuple["MlflowClient", str]:
    """The client and the experiment's id; makes the database and the experiment on first use."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
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
            return client, experiment.experiment_id
        served = uri().startswith(("http://", "https://"))  # a server has its own place for artifacts
        place = None if served else (paths.root() / "mlartifacts").as_uri()
        return client, client.create_experiment(EXPERIMENT, place)


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
    connect()
