"""The rehearsal's stand-ins: the layouts of the real things, and the answers of the models that they are made of."""

import json
from pathlib import Path

import pytest

from rehearsal import chat, coco, standins
from t2i_feedback import mllm
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.backends.local import LocalEntry

SHIPPED = Path(__file__).parents[2] / "models/postcards"
CAPTIONS = ["a red house", "a yellow sun on a beach"]
# github.com/huggingface/diffusers, the repository layout of stable-diffusion-v1-5, as safetensors
LAYOUT = {
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("standins") / "sd"
    standins.stable_diffusion(SHIPPED / "sd", target)
    return target


def test_the_image_model_has_the_files_of_sd_1_5(folder: Path) -> None:
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == LAYOUT


def test_the_slow_tokeniser_files_say_the_same_as_the_shipped_ones(folder: Path) -> None:
    from transformers import CLIPTokenizer

    ours, theirs = (CLIPTokenizer.from_pretrained(where / "tokenizer") for where in (folder, SHIPPED / "sd"))
    text = "A purple Moon, and 2 orange fish's balloon on a lake!"
    assert ours(text).input_ids == theirs(text).input_ids
    assert ours.model_max_length == theirs.model_max_length


def test_its_scheduler_becomes_the_shipped_one(folder: Path) -> None:
    from diffusers import DDIMScheduler, PNDMScheduler

    ours = DDIMScheduler.from_config(PNDMScheduler.from_pretrained(folder / "scheduler").config)
    theirs = DDIMScheduler.from_pretrained(SHIPPED / "sd/scheduler")
    assert {key: ours.config[key] for key in theirs.config} == dict(theirs.config)


def test_coco_has_official_names_and_captions_without_facts(tmp_path: Path) -> None:
    import zipfile

    coco.write(tmp_path / "coco")
    with zipfile.ZipFile(tmp_path / "coco/annotations/annotations_trainval2014.zip") as archive:
        content = json.loads(archive.read("annotations/captions_val2014.json"))
    assert len(content["images"]) == coco.IMAGES["val"]
    for image in content["images"]:
        assert image["file_name"] == f"COCO_val2014_{image['id']:012d}.jpg"
        assert (tmp_path / "coco/val2014" / image["file_name"]).exists() and image["width"] > image["height"]
    assert not any("facts" in annotation for annotation in content["annotations"])


@pytest.mark.parametrize(("served", "reading"), [("gpt-5.6-terra", "probability"), ("cogvlm-chat", "samples")])
def test_a_served_model_says_what_it_says_in_process(
    served: str, reading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setenv("REHEARSAL_KEY", chat.KEY)
    images = [Image.new("RGB", (64, 64), colour) for colour in ("#802020", "#e0d020")]
    here = LocalEntry(backend="local", model=str(SHIPPED / "mllm"), templates="postcards", device="cpu")
    with chat.serving(SHIPPED / "mllm") as server:
        there = EndpointEntry(
            backend="endpoint",
            model=served,
            base_url=server.url,
            templates="postcards",
            api_key_env="REHEARSAL_KEY",
            samples=3,
            concurrency=2,
        )
        found = []
        for entry in (there, here):
            with mllm.connect("model", entry, tmp_path / "ledger.sqlite") as model:
                verdicts = roles.validate(model, images, CAPTIONS)
                found.append(([one.raw for one in roles.enhance(model, CAPTIONS)], verdicts))
    assert found[0][0] == found[1][0]
    assert {one.status for one in found[0][1]} == {"valid"} and {one.reading for one in found[0][1]} == {reading}
    if reading == "probability":
        assert [one.p_yes for one in found[0][1]] == pytest.approx([one.p_yes for one in found[1][1]], abs=1e-3)


def test_the_stand_in_for_gpt_4_wants_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i_feedback.foundation.errors import UserError

    monkeypatch.setenv("REHEARSAL_KEY", "wrong")
    with chat.serving(SHIPPED / "mllm") as server:
        entry = EndpointEntry(
            backend="endpoint", model="gpt-5.6-terra", base_url=server.url, api_key_env="REHEARSAL_KEY", retries=0
        )
        with (
            pytest.raises(UserError, match="answered 401"),
            mllm.connect("gpt4", entry, tmp_path / "ledger.sqlite") as model,
        ):
            roles.enhance(model, CAPTIONS)
