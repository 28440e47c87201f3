"""CLIP as extractor and as CLIPScore, against transformers' own processor and forward pass."""

from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from t2i_feedback.evaluation import clip, extractors
from t2i_feedback.foundation.errors import UserError

SEED = 3  # of weights by which some cosines are positive; by those of seed 0 none is
TEXTS = ["a red house", "two trees below the moon", "a " + "very " * 100 + "long text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.save(tmp_path_factory.mktemp("clip"), SEED)


def images(side: int = tiny_clip.SIDE) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in TEXTS]


@pytest.mark.parametrize(("seed", "any_score"), [(0, False), (SEED, True)])
def test_clip_score_is_two_and_a_half_times_the_cosine_of_transformers_and_never_negative(
    seed: int, any_score: bool, tmp_path: Path
) -> None:
    name = str(tiny_clip.save(tmp_path, seed))
    inputs = CLIPProcessor.from_pretrained(name)(
        text=["A photo depicts " + text for text in TEXTS],
        images=images(),
        return_tensors="pt",
        padding=True,
        truncation=True,
    )
    with torch.no_grad():
        out = CLIPModel.from_pretrained(name).eval()(**inputs)
    cosines = (out.image_embeds * out.text_embeds).sum(1) / (out.image_embeds.norm(dim=1) * out.text_embeds.norm(dim=1))
    expected = [2.5 * max(cosine, 0) for cosine in cosines.tolist()]
    assert clip.scores(clip.load(name, "key"), name, "key", images(), TEXTS) == pytest.approx(expected, abs=1e-4)
    assert any(expected) == any_score


def test_clip_score_does_not_depend_on_its_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = clip.load(str(folder), "key")
    together = clip.scores(model, str(folder), "key", images(48), TEXTS)
    monkeypatch.setattr(clip, "BATCH", 1)
    assert clip.scores(model, str(folder), "key", images(48), TEXTS) == pytest.approx(together, abs=1e-5)


def test_the_extractor_gives_the_projected_features_and_no_classes(folder: Path, tmp_path: Path) -> None:
    for number, image in enumerate(images()):
        image.save(tmp_path / f"{number}.png")
    extractor = extractors.load("clip", "cpu", str(folder))
    found = extractors.extract(sorted(tmp_path.glob("*.png")), extractor, tiny_clip.SIDE)
    seen = CLIPProcessor.from_pretrained(folder).image_processor(images(), return_tensors="pt")
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).eval().get_image_features(**seen).pooler_output
    assert np.allclose(found.features, expected.numpy(), atol=1e-4)
    assert found.logits is None
    assert extractor.weights.startswith(f"{folder}, sha256 ")


def test_other_weights_are_told_apart(folder: Path, tmp_path: Path) -> None:
    other = tiny_clip.save(tmp_path / "other", seed=1)
    versions = {clip.version(clip.load(str(one), "key"), "clip") for one in (folder, folder, other)}
    assert len(versions) == 1  # a name that is no folder has nothing to hash
    told = {clip.version(clip.load(str(one), "key"), str(one)).rpartition(" ")[2] for one in (folder, other)}
    assert len(told) == 2


def test_a_pickled_checkpoint_and_a_missing_one_are_one_line_with_the_key(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folder / "config.json").read_text())
    torch.save(CLIPModel.from_pretrained(folder).state_dict(), pickled / "pytorch_model.bin")
    for name, why in ((str(pickled), "safetensors"), (str(tmp_path / "nowhere"), "neither a folder here")):
        with pytest.raises(UserError, match=rf"^evaluate\.clip_score: .*{why}") as caught:
            clip.load(name, "evaluate.clip_score")
        assert "\n" not in str(caught.value)
