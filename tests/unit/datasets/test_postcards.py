"""The drawn world: what a scene looks like, what captions say of it, and the data set that is made of both."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from t2i_feedback.datasets import coco
from t2i_feedback.datasets.postcards.captions import KIND_WORDS, caption, remarks
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import COLOURS, KINDS, LEVELS, Scene, Thing, sample_scene
from t2i_feedback.datasets.postcards.writing import write_dataset
from t2i_feedback.foundation.errors import UserError


def write(root: Path, train: int = 6, val: int = 12, seed: int = 0) -> list[str]:
    return list(write_dataset(root, {"train": train, "val": val}, seed))


def captions(root: Path, split: str) -> list[str]:
    annotations = json.loads((root / "annotations" / f"captions_{split}.json").read_text())["annotations"]
    return [annotation["caption"] for annotation in annotations]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ scenes


def test_the_same_seed_gives_the_same_scene() -> None:
    assert sample_scene(random.Random(1)) == sample_scene(random.Random(1))


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_belong_to_the_split_asked_for(split: str) -> None:
    rng = random.Random(0)
    assert all(sample_scene(rng, split).split == split for _ in range(50))


def test_two_things_never_share_a_place() -> None:
    rng = random.Random(0)
    for _ in range(300):
        things = sample_scene(rng).things
        assert len({(thing.in_sky, thing.column) for thing in things}) == len(things)


def test_a_scene_survives_json() -> None:
    scene = sample_scene(random.Random(3))
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_the_split_does_not_depend_on_the_order_of_things() -> None:
    rng = random.Random(0)
    for _ in range(50):
        scene = sample_scene(rng)
        assert Scene(scene.background, scene.things[::-1]).split == scene.split


# ------------------------------------------------------------------------------------------------ images


def test_a_image_is_64_pixels_of_rgb() -> None:
    image = render(sample_scene(random.Random(0)), random.Random(0))
    assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_shows_in_its_column_and_leaves_the_others_alone(kind: str, colour: str) -> None:
    empty = np.asarray(render(Scene("desert", ()), random.Random(8)), dtype=float)
    for column, where in (("left", slice(0, 27)), ("right", slice(37, 64))):
        scene = Scene("desert", (Thing(kind, colour, "large", column),))
        # The thing's own draws move light and focus: compare with the image's far side, rescaled to the same light.
        drawn = np.asarray(render(scene, random.Random(8)), dtype=float)
        far = slice(52, 64) if column == "left" else slice(0, 12)
        light = drawn[:8, far].mean() / empty[:8, far].mean()
        changed = np.abs(drawn - empty * light).max(axis=2) > 24
        assert changed[:, where].sum() > 0.8 * changed.sum()
        assert changed[:, where].sum() > 40


def test_a_large_thing_covers_more_than_a_small_one() -> None:
    def covered(size: str) -> int:
        image = render(Scene("snow", (Thing("house", "blue", size, "centre"),)), random.Random(1))
        red, _, blue = np.moveaxis(np.asarray(image, dtype=int), 2, 0)
        return int(((blue - red) > 90).sum())

    assert covered("large") > 2 * covered("small")


def test_an_unknown_background_is_an_error() -> None:
    with pytest.raises(ValueError, match="moonbase"):
        render(Scene("moonbase", ()), random.Random(0))


# ------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize("level", LEVELS)
def test_every_thing_is_named_at_every_level(level: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        scene = sample_scene(rng)
        text, facts = caption(scene, rng, level)
        assert sorted(thing.kind for thing in facts.things) == sorted(thing.kind for thing in scene.things)
        for thing in scene.things:
            assert any(word in text for word in KIND_WORDS[thing.kind])


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_caption_states_is_true_and_said(level: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        scene = sample_scene(rng)
        text, facts = caption(scene, rng, level)
        assert facts.background in (None, scene.background)
        for stated in facts.things:
            assert any(
                thing.kind == stated.kind
                and stated.colour in (None, thing.colour)
                and stated.size in (None, thing.size)
                and stated.column in (None, thing.column)
                for thing in scene.things
            )
            assert stated.colour is None or stated.colour in text


def test_a_detailed_caption_states_everything() -> None:
    rng = random.Random(0)
    scene = sample_scene(rng)
    _, facts = caption(scene, rng, "detailed")
    assert facts.background == scene.background
    assert set(facts.things) == set(scene.things)


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="chatty"):
        caption(sample_scene(random.Random(0)), random.Random(0), "chatty")


def test_remarks_are_true_sentences_about_each_fact() -> None:
    scene = Scene("beach", (Thing("house", "red", "small", "left"),))
    assert remarks(scene) == [
        "there is a house",
        "the house is red",
        "the house is small",
        "the house is on the left",
        "it is a beach",
        "nothing else",
    ]


# ------------------------------------------------------------------------------------------------ the data set


def test_it_is_read_as_coco(tmp_path: Path) -> None:
    write(tmp_path / "world")
    assert len(coco.read(tmp_path / "world", "train")) == 6
    assert [len(image.captions) for image in coco.read(tmp_path / "world", "val")] == [5] * 12


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=7)
    write(tmp_path / "b", seed=7)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_another_seed_writes_others(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=7)
    write(tmp_path / "b", seed=8)
    assert captions(tmp_path / "a", "val") != captions(tmp_path / "b", "val")


def test_every_file_is_reported_once_written(tmp_path: Path) -> None:
    names = write(tmp_path / "world")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "world").glob("*/*.png"))


def test_no_caption_is_in_both_splits(tmp_path: Path) -> None:
    write(tmp_path / "world", train=40, val=40)
    assert not set(captions(tmp_path / "world", "train")) & set(captions(tmp_path / "world", "val"))


def test_facts_of_the_written_captions_are_scenes(tmp_path: Path) -> None:
    write(tmp_path / "world")
    for image in coco.read(tmp_path / "world", "val"):
        for found in image.captions:
            assert found.facts is not None
            assert Scene.from_json(found.facts).things


def test_a_world_without_new_captions_left_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = sample_scene(random.Random(0), "val")
    monkeypatch.setattr("t2i_feedback.datasets.postcards.writing.sample_scene", lambda rng, split: scene)
    with pytest.raises(UserError, match="no new captions after"):
        write(tmp_path / "world", train=0, val=500)
