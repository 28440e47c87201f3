"""What MLflow has of a test's runs."""

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from t2i_feedback.tracking import store
from t2i_feedback.tracking.runs import PARENT

UNREACHABLE = "http://127.0.0.1:9"


def client() -> MlflowClient:
    return MlflowClient(store.uri())


def all_runs() -> list[Run]:
    found = client().get_experiment_by_name(store.EXPERIMENT)
    assert found
    return list(client().search_runs([found.experiment_id]))


def parents() -> list[Run]:
    return [run for run in all_runs() if PARENT not in run.data.tags]


def children() -> dict[str, Run]:
    """Name -> run."""
    return {str(run.info.run_name): run for run in all_runs() if PARENT in run.data.tags}
