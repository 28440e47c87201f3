"""A run of MLflow, written to so that writing the same twice changes nothing.

One parent run stands for one state of code, data and parameters; `finetune` streams into a child of it, and the arms'
images lie in another.
"""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_feedback.foundation import params
from t2i_feedback.tracking.identity import KEY, NAME, Identity, Parameters, checked, flatten, identify
from t2i_feedback.tracking.store import connect, one_at_a_time

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

BATCH = 100  # parameters per request that MLflow takes; metrics may be 1000
STAGE, PARENT, STAMP = "t2i.stage", "mlflow.parentRunId", "t2i.stamp"  # tags
IMAGES = "images"  # the folder in which MLflow keeps images that have a key and a step
_WHOLE_IMAGE = re.compile(r"(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+.*\+compressed\.webp")
KEY_LENGTH = 80  # characters of an image's key: it becomes a part of a file's name


class Run:
    """`parent` is the id of the run that this one is a child of, "" of none."""

    def __init__(self, client: "MlflowClient", experiment: str, run_id: str, parent: str = ""):
        self.client, self.experiment, self.run_id, self.parent = client, experiment, run_id, parent

    def child(self, stage: str) -> "Run":
        """The run of one stage under this one."""
        return _find_or_create(self.client, self.experiment, {PARENT: self.run_id, STAGE: stage}, stage)

    @property
    def status(self) -> str:
        return self.client.get_run(self.run_id).info.status

    def begin(self) -> None:
        self.client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Metrics of one step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in numbers.items()])

    def held(self, names: Iterable[str] | None = None) -> set[tuple[str, int, float]]:
        """(name, step, value) of all metrics that the run has, or of those with these names."""
        there = self.client.get_run(self.run_id).data.metrics.keys()
        chosen = there if names is None else there & set(names)
        return {(m.key, m.step, m.value) for name in chosen for m in self.client.get_metric_history(self.run_id, name)}

    def replay(self, series: Mapping[int, Mapping[str, float]]) -> None:
        """Metrics by step, but only those that the run does not have yet."""
        held = self.held({name for numbers in series.values() for name in numbers})
        for step, numbers in series.items():
            new = {name: value for name, value in numbers.items() if (name, step, value) not in held}
            if new:
                self.log(step, new)

    def note(self, params: Mapping[str, str]) -> None:
        """Parameters, which never change."""
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), BATCH):
            self.client.log_batch(self.run_id, params=items[start : start + BATCH])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Words that may be changed later."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)

    def image(self, key: str, step: int, image: "Image.Image") -> None:
        """An image for MLflow's image grid, which shows images of one key by step and of several runs side by side."""
        self.client.log_image(self.run_id, image, key=key, step=step)

    def images(self) -> set[tuple[str, int]]:
        """(key, step) of the run's images, as far as they are whole: MLflow writes a smaller copy of each after it."""
        names = [Path(file.path).name for file in self.client.list_artifacts(self.run_id, IMAGES)]
        found = [found for name in names if (found := _WHOLE_IMAGE.match(name))]
        return {(one["key"].replace("~", "/"), int(one["step"])) for one in found}

    def keep(self, files: Iterable[Path], folder: str | None = None) -> None:
        """Files and whole folders as artifacts."""
        for path in files:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), f"{folder}/{path.name}" if folder else path.name)
            else:
                self.client.log_artifact(self.run_id, str(path), folder)


def parent_run(parameters: Parameters | None = None, identity: Identity | None = None) -> Run:
    """The run of these parameters, by default of the workspace's present state. Outside of `dvc exp run` it is found
    whatever its experiment's name."""
    parameters = params.read() if parameters is None else parameters
    identity = identity or identify(parameters, checked())
    name = identity.name or f"{identity.code[:7]} {identity.params[:7]}"
    run = _find_or_create(*connect(), {**identity.tags, STAGE: "pipeline"}, name)
    run.note(flatten(parameters))
    if stamp := params.at(parameters, "report.stamp"):
        run.tag({STAMP: stamp})
    return run


def _find_or_create(client: "MlflowClient", experiment: str, tags: Mapping[str, str], name: str) -> Run:
    """The newest run with these tags, as far as they identify one, else a new run."""
    terms = [f"tags.`{key}` = '{value}'" for key, value in tags.items() if key in (KEY, NAME, STAGE, PARENT)]
    order = ["attributes.start_time DESC"]
    with one_at_a_time():
        found = client.search_runs([experiment], " and ".join(terms), max_results=1, order_by=order)
        run = found[0] if found else client.create_run(experiment, tags=dict(tags), run_name=name)
    return Run(client, experiment, run.info.run_id, tags.get(PARENT, ""))


def image_key(text: str) -> str:
    """The text as far as MLflow takes it as an image's key."""
    return " ".join(re.sub(r"[^A-Za-z0-9_./ -]", " ", text).split())[:KEY_LENGTH].strip()
