"""The pre-training chain of the MLLMs runs from end to end on tiny sizes and leaves LLaVAs that load and answer."""

import json
import sys
from pathlib import Path

import mllm_features
import mllm_language
import mllm_measure
import mllm_tower
import pytest
import render
import torch
import yaml
from oracle import VOCABULARY
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from t2i_feedback.evaluation.alignment import Oracle

REPOSITORY = Path(__file__).resolve().parents[2]
TOWER = {
    "embed_dim": 8,
    "depths": [1, 1, 1],
    "num_heads": [1, 1, 2],
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
LANGUAGE = {
    "steps": 3,
    "batch": 3,
    "pictures": 2,
    "align_steps": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "text": TEXT,
}
TINY = {
    "render": {"scenes": 40, "val_scenes": 10},
    "mllm_tower": {"steps": 3, "batch": 8, "checkpoint_every": 2, "tower": TOWER},
    "judge_tower": {"steps": 2, "batch": 8, "checkpoint_every": 2, "tower": TOWER},
    "mllm_features": {"renders": 20, "variants": 1, "held_out": 3},
    "judge_features": {"renders": 20, "variants": 1, "held_out": 3},
    "mllm_language": LANGUAGE | {"text_rows": 1},
    "judge_language": LANGUAGE | {"text_rows": 0},
    "mllm_measure": {"scenes": 6, "drawn": 3},
}


def run(script, folder: Path, patch: pytest.MonkeyPatch, *arguments: str) -> None:
    paths = ["--params", str(folder / "params.yaml"), "--root", str(folder)]
    patch.setattr(sys, "argv", [script.__name__, *arguments, *paths])
    script.main()


def fake_drawn(work: Path) -> None:
    """Renders in the place of drawn pictures; one of them shows something that the labeller could not name."""
    (work / "drawn").mkdir()
    save_file(
        {"images": load_file(work / "renders/images.safetensors")["images"][:8].clone()},
        work / "drawn/images.safetensors",
    )
    scenes = json.loads((work / "renders/scenes.json").read_text())[:8]
    rows = [{"caption": "a red house", "facts": scene, "seen": scene} for scene in scenes]
    blob = {"kind": "unclear", "colour": None, "size": None, "column": "left"}
    rows[0] = rows[0] | {"seen": {"background": "lake", "things": [blob]}}
    (work / "drawn/rows.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory):
    """A folder in which the whole chain has run."""
    folder = tmp_path_factory.mktemp("mllm")
    params = yaml.safe_load((REPOSITORY / "pretrain" / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        run(render, folder, patch)
        fake_drawn(folder / "pretrain/work")
        Oracle(VOCABULARY, (4, 4, 8, 8)).eval().save_pretrained(folder / "models/postcards/oracle")
        for name in ("mllm", "judge"):
            for script in (mllm_tower, mllm_features, mllm_language):
                run(script, folder, patch, "--model", name)
        run(mllm_measure, folder, patch)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("name", ["mllm", "judge"])
def test_a_llava_loads_and_answers_batches_of_mixed_lengths_as_it_answers_one(root: Path, name: str) -> None:
    processor = AutoProcessor.from_pretrained(root / "models/postcards" / name)
    model = AutoModelForImageTextToText.from_pretrained(root / "models/postcards" / name).eval()
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert model.dtype == torch.float32
    picture = Image.new("RGB", (64, 64), (200, 30, 60))

    def ask(*texts: str) -> dict:
        content = [[{"type": "image", "image": picture}, {"type": "text", "text": text}] for text in texts]
        return processor.apply_chat_template(
            [[{"role": "user", "content": parts}] for parts in content],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    texts = ("Describe this picture.", "Does this picture show a small red house on the left and a yellow sun?")
    with torch.no_grad():
        together = model(**ask(*texts)).logits[:, -1]
        alone = torch.stack([model(**ask(text)).logits[0, -1] for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    inputs = ask(*texts)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2


def test_answers_are_single_tokens(root: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(root / "models/postcards/mllm").tokenizer
    for answer in ("yes", "no", *map(str, range(1, 11))):
        assert len(tokenizer(answer, add_special_tokens=False).input_ids) == 1


def test_saved_in_half_precision(root: Path) -> None:
    weights = load_file(root / "models/postcards/mllm/model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}


def test_the_language_part_goes_on_from_its_checkpoint(
    root: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(mllm_language, root, monkeypatch, "--model", "mllm")
    assert "mllm_language: 3 pictures" in capfd.readouterr().out  # one of three steps of a batch of three


def test_quality_is_measured_for_both_models(root: Path) -> None:
    quality = json.loads((root / "models/postcards/quality_mllm.json").read_text())
    assert {"mllm", "judge", "between_the_judges"} == set(quality)
    assert 0 <= quality["mllm"]["validator"]["balanced_accuracy"] <= 1
    assert sum(quality["mllm"]["validator_drawn"]["questions"].values()) >= 3
    assert "enhancement" in quality["mllm"]
    assert "enhancement" not in quality["judge"]
