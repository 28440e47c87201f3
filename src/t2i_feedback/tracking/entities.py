"""What MLflow knows more of than a file: the data set as a run's input, the adapter as a model."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_feedback.foundation import files, lockfile, params, paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.rows import CaptionRow, read_rows
from t2i_feedback.tracking.runs import Run

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

WEIGHTS, PIPELINE_RUN = "t2i.weights", "t2i.run"  # tags of a model


def dataset(run: Run, context: str) -> None:
    """The data set as the run's input, by the digest that DVC has noted. Nothing when DVC has noted none."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    noted = [outs[paths.DATASET] for entry in lockfile.entries() if paths.DATASET in (outs := lockfile.outs(entry))]
    if not noted:
        return
    (digest,) = noted
    name = str(params.at(params.read(), "data.source"))
    profile = {
        f"{path.stem}_captions": len(read_rows(path, CaptionRow))
        for path in (paths.FINETUNE_CAPTIONS, paths.EVALUATION_CAPTIONS, paths.REFERENCE_CAPTIONS)
        if path.exists()
    }
    source = {"uri": str(paths.DATASET), "dvc": digest}
    made = Dataset(name, digest, "local", json.dumps(source), profile=json.dumps(profile))
    run.client.log_inputs(run.run_id, [DatasetInput(made, [InputTag("mlflow.data.context", context)])])


def adapter(run: Run, folder: Path) -> None:
    """The adapter in this folder as a model of the flavour `mlflow.diffusers`: safetensors, and which model it changes.
    Nothing when the run, its parent or a child of it has a model of the same weights.

    `mlflow.diffusers.load_model(uri).load_pipeline()` draws with it, anywhere if that model is a hub's, and in the
    repository's root if it is a folder here.
    """
    from mlflow.entities import LoggedModelOutput

    digest = files.digest(folder / ADAPTER_WEIGHTS)
    tags = {WEIGHTS: digest, PIPELINE_RUN: run.parent or run.run_id}
    found = run.client.search_logged_models(
        [run.experiment], " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    )
    if any(model.status == "READY" for model in found):
        return
    for unfinished in found:
        run.client.delete_logged_model(unfinished.model_id)
    model = run.client.create_logged_model(run.experiment, "lora", run.run_id, tags)
    with tempfile.TemporaryDirectory() as place:
        save_adapter(folder / ADAPTER_WEIGHTS, Path(place) / "model", run_id=run.run_id, model_id=model.model_id)
        run.client.log_model_artifacts(model.model_id, f"{place}/model")
    run.client.finalize_logged_model(model.model_id, "READY")
    run.client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])


def save_adapter(weights: Path, folder: Path, **about: Any) -> None:
    """Write the folder of such a model. `about`: fields of `mlflow.models.Model`.

    MLflow itself would ask the hub for the newest revision of the model that the adapter changes. What is written is
    the revision that was used.
    """
    import mlflow.diffusers
    from mlflow.models import Model

    used = params.at(params.read(), "model")
    name, is_folder = used["name"], Path(used["name"]).is_dir()
    model = Model(**about)
    # of what begins so it asks no hub
    reference = name if Path(name).is_absolute() else f"./{name}"
    signature = _signature(used)
    mlflow.diffusers.save_model(str(weights), str(folder), reference, mlflow_model=model, signature=signature)
    if not is_folder:
        base = {"base_model": name, "base_model_revision": _commit(name, used["revision"])}
        model.flavors[mlflow.diffusers.FLAVOR_NAME] |= base
        model.save(str(folder / "MLmodel"))


def _signature(model: dict[str, Any]) -> "ModelSignature":
    """What serving the model takes: prompts, and by default the parameters that the arms are drawn with."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    width, height = params.sides(model["size"])
    defaults = {
        "num_inference_steps": ("integer", model["steps"]),
        "guidance_scale": ("double", float(model["guidance"])),
        "height": ("integer", height),
        "width": ("integer", width),
        "negative_prompt": ("string", model["negative_prompt"]),
    }
    return ModelSignature(
        Schema([ColSpec("string", "prompt")]),
        Schema([ColSpec("binary", "image")]),
        ParamSchema([ParamSpec(name, kind, value) for name, (kind, value) in defaults.items()]),
    )


def _commit(name: str, revision: str) -> str:
    """The commit of a hub's model that the revision, which may be a branch, is in the cache here; without asking."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "model_index.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision
