import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import pytest
import tiny_diffusion
import torch
import tracked
import workplaces
from made_up_run import REPOSITORY, write_run
from PIL import Image

from t2i_feedback.foundation import paths
from t2i_feedback.tracking import entities, publish, store
from t2i_feedback.tracking.runs import parent_run
from t2i_feedback.tracking.streaming import stage_run

pytestmark = pytest.mark.slow  # needs MLflow

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def models() -> list:
    return list(tracked.client().search_logged_models([tracked.all_runs()[0].info.experiment_id]))


def use(name: str) -> None:
    """Parameters of a tiny image model of that name, and an adapter that was trained on it."""
    changed = workplaces.ours()
    changed["model"] |= {"name": name, "size": tiny_diffusion.SIZE, "steps": 2}
    workplaces.write_parameters(changed)
    train(paths.ADAPTER, by=1.0)


def train(folder: Path, by: float) -> None:
    """Write an adapter of the tiny image model, its numbers moved by that much."""
    image_model = tiny_diffusion.image_model(tiny_diffusion.pipeline(Path("tokenizer")))
    with torch.no_grad():
        for parameter in image_model.add_adapter(4, 8, ["to_q", "to_v"], 0):
            parameter.add_(by)
    image_model.save_adapter(folder)


@pytest.fixture
def trained(root: Path) -> Path:
    """An adapter of a checkpoint that is a folder here."""
    shutil.move(tiny_diffusion.checkpoint(Path("made")), "tiny")
    use("tiny")
    return root


# ------------------------------------------------------------------------------------------------ data set


def test_the_data_set_is_an_input_known_by_dvc_s_digest(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    publish.publish()
    publish.publish()
    with stage_run("finetune"):
        pass
    (parent,) = tracked.parents()
    for run, context in ((parent, "evaluation"), (tracked.children()["finetune"], "training")):
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("postcards", "0123456789abcdef.dir")
        assert json.loads(given.dataset.source)["uri"] == "data/dataset"
        assert json.loads(given.dataset.profile) == {"evaluation_captions": 4}
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", context)]


def test_a_data_set_that_dvc_has_not_noted_is_no_input(root: Path) -> None:
    with stage_run("finetune"):
        pass
    assert tracked.children()["finetune"].inputs.dataset_inputs == []


# ------------------------------------------------------------------------------------------------ adapter


def test_the_adapter_is_a_model_that_draws_as_mlflow_s_users_load_it(trained: Path) -> None:
    with stage_run("finetune") as stream:
        stream.adapter(paths.ADAPTER)
    entities.adapter(parent_run(), paths.ADAPTER)  # as publishing does
    (model,) = models()
    finetune = tracked.children()["finetune"]
    assert (model.status, model.source_run_id) == ("READY", finetune.info.run_id)
    assert [made.model_id for made in finetune.outputs.model_outputs] == [model.model_id]
    files = [path for path in Path(url2pathname(urlsplit(model.artifact_location).path)).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".safetensors", ".txt", ".yaml"}, "a pickle can run any code"

    mlflow.set_tracking_uri(store.uri())
    adapter = mlflow.diffusers.load_model(model.model_uri)
    assert (adapter.base_model, adapter.base_model_revision) == ("./tiny", None)
    weights = Path(adapter.adapter_path) / "pytorch_lora_weights.safetensors"
    assert weights.read_bytes() == (paths.ADAPTER / weights.name).read_bytes()
    assert adapter.load_pipeline(device="cpu").get_active_adapters()
    (drawn,) = mlflow.pyfunc.load_model(model.model_uri).predict({"prompt": "a cat"})
    assert Image.open(io.BytesIO(drawn)).size == (tiny_diffusion.SIZE, tiny_diffusion.SIZE)


def test_other_weights_are_another_model_and_an_unfinished_one_is_logged_again(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parent_run()
    with monkeypatch.context() as patch:
        patch.setattr(type(run.client), "log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError):
            entities.adapter(run, paths.ADAPTER)
    assert [model.status for model in models()] == ["PENDING"]
    entities.adapter(run, paths.ADAPTER)
    assert [model.status for model in models()] == ["READY"]
    other = paths.ADAPTER.with_name("other")
    train(other, by=2.0)
    entities.adapter(run, other)
    assert [model.status for model in models()] == ["READY", "READY"]


def test_a_hub_s_model_is_named_by_the_commit_that_was_used_and_nobody_asks_a_hub(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was used is what the cache has of the branch, whatever the hub has by now. Another process loads it, since
    the hub's library reads its environment when it is imported."""
    hub = root / "hub"
    repository = hub / "hub/models--someone--sd"
    (repository / "snapshots").mkdir(parents=True)
    shutil.move(tiny_diffusion.checkpoint(Path("made")), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    use("someone/sd")
    script = (
        "import sys, json, mlflow; from pathlib import Path\n"
        "from t2i_feedback.foundation import paths\n"
        "from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS\n"
        "from t2i_feedback.tracking import entities\n"
        "entities.save_adapter(paths.ADAPTER / ADAPTER_WEIGHTS, Path('model'))\n"
        "adapter = mlflow.diffusers.load_model('model')\n"
        "print(json.dumps([adapter.base_model, adapter.base_model_revision,"
        " adapter.load_pipeline(device='cpu').get_active_adapters()]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["someone/sd", COMMIT, ["default_0"]]
    assert "Could not resolve" not in done.stderr
