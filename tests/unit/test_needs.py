"""What a run needs of the hub: a model is there when all of its weights are."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from t2i_feedback import needs

PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": [None, None],
    "text_encoder_3": None,
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
SHARDS = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of owner/model, as an interrupted download leaves it: with nothing in it yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--owner--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    return model / "snapshots" / ("0" * 40)


def put(folder: Path, *names: str, content: object = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


def test_a_pipeline_is_there_when_each_of_its_networks_has_weights(snapshot: Path) -> None:
    weights = [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors",
    ]
    found = [needs.cached("owner/model", needs.PIPELINE, "main")]
    put(snapshot, "model_index.json", content=PIPELINE)
    for one in weights:
        found.append(needs.cached("owner/model", needs.PIPELINE, "main"))
        put(snapshot, one)
    assert found == [False] * 4
    assert needs.cached("owner/model", needs.PIPELINE, "main")


def test_a_model_in_pieces_is_there_when_all_pieces_are(snapshot: Path) -> None:
    put(snapshot, "config.json", "consolidated.safetensors")
    put(snapshot, "model.safetensors.index.json", content=SHARDS)
    found = []
    for one in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        found.append(needs.cached("owner/model", "config.json", "main"))
        put(snapshot, one)
    assert found == [False, False]
    assert needs.cached("owner/model", "config.json", "main")
