"""The data stage: which captions and images it chooses, and what it does when there are not enough."""

import json
from pathlib import Path

import pytest
import workplaces
from PIL import Image

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, read_rows
from t2i_feedback.stages.data import main

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def run(source: str = "postcards", seed: int = 1, **changes: object) -> None:
    raw = workplaces.ours()
    sizes = {"finetune_captions": 8, "evaluation_captions": 6, "reference_images": 10}
    raw["data"] |= {"source": source, "path": "source"} | sizes | changes
    raw["seed"] = seed
    raw["evaluate"] |= {"kid_subset": 4, "neighbourhood": 3, "splits": 2}
    workplaces.furnish(raw, models=False)
    main()


def finetune() -> list[CaptionRow]:
    return read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)


def evaluation() -> list[CaptionRow]:
    return read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)


def reference() -> list[CaptionRow]:
    return read_rows(paths.REFERENCE_CAPTIONS, CaptionRow)


def write_folder(count: int, captions: int = 2) -> None:
    """`count` images of different greys; image i says "thing i" and, longer, "thing i, again" and so on."""
    Path("source").mkdir()
    lines = []
    for i in range(count):
        Image.new("RGB", (8, 8), (i, i, i)).save(f"source/{i}.png")
        lines += [{"image": f"{i}.png", "caption": f"thing {i}" + ", again" * k} for k in range(captions)]
    Path("source/captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_coco(split: str, first: int, count: int, greys: int = 0) -> None:
    """`count` images of one caption each, ids from `first`."""
    folder = Path("source") / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(first, first + count):
        Image.new("RGB", (8, 8), (i + greys, i, i)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        annotations.append({"id": i, "image_id": i, "caption": f"{split} thing {i}"})
    Path("source/annotations").mkdir(exist_ok=True)
    text = json.dumps({"images": images, "annotations": annotations})
    Path(f"source/annotations/captions_{split}.json").write_text(text)


# ------------------------------------------------------------------------------------------------ what it writes


def test_it_writes_as_many_rows_as_asked_for() -> None:
    run()
    assert (len(finetune()), len(evaluation()), len(reference())) == (8, 6, 10)


def test_every_row_has_its_image() -> None:
    run()
    for row in finetune() + reference():
        with Image.open(paths.DATASET / row.image) as image:
            assert image.mode == "RGB"
    assert len(list((paths.DATASET / "images").iterdir())) == 18


def test_evaluation_images_are_the_first_reference_images() -> None:
    run()
    assert evaluation() == reference()[:6]


def test_caption_ids_are_unique() -> None:
    run()
    ids = [row.caption_id for row in finetune() + reference()]
    assert len(set(ids)) == len(ids)


def test_postcards_come_with_facts_and_their_coco_annotations() -> None:
    run()
    assert all(row.facts for row in finetune() + reference())
    assert sorted(path.name for path in (paths.DATASET / "annotations").iterdir()) == [
        "captions_train.json",
        "captions_val.json",
    ]


def test_the_same_seed_gives_the_same_bytes() -> None:
    run(seed=3)
    before = {path: path.read_bytes() for path in paths.DATASET.rglob("*") if path.is_file()}
    run(seed=3)
    assert before == {path: path.read_bytes() for path in paths.DATASET.rglob("*") if path.is_file()}


def test_another_seed_gives_other_captions() -> None:
    run(seed=3)
    before = evaluation()
    run(seed=4)
    assert evaluation() != before


def test_an_earlier_output_is_replaced_whole() -> None:
    run(seed=3)
    (paths.DATASET / "stray").write_text("")
    run(seed=4)
    assert not (paths.DATASET / "stray").exists()


def test_no_partial_work_is_left(here: Path) -> None:
    run()
    assert not list((here / ".cache" / "partial").iterdir())
    assert {path.name for path in Path("data").iterdir()} - {"checked"} == {"dataset"}


def test_it_says_what_it_will_do_and_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    will, did = capsys.readouterr().out.splitlines()
    assert will == "data: 8 captions for fine-tuning and 6 for evaluation, 10 reference images from postcards"
    assert did == "data: done, 8 + 6 captions and 10 images in data/dataset"


# ------------------------------------------------------------------------------------------------ what it chooses


@pytest.mark.parametrize("source", ["postcards", "folder", "coco"])
def test_fine_tuning_and_evaluation_share_no_sentence_and_no_image(source: str) -> None:
    if source == "folder":
        write_folder(18)
    if source == "coco":
        write_coco("train", 100, 9)
        write_coco("val", 1, 11)
    run(source)
    assert not {row.caption for row in finetune()} & {row.caption for row in evaluation()}
    images = [(paths.DATASET / row.image).read_bytes() for row in finetune() + reference()]
    assert len(set(images)) == len(images)


def test_one_coco_split_can_serve_both() -> None:
    write_coco("val", 1, 20)
    run("coco", train_split="val", val_split="val")
    assert {row.image_id for row in finetune()}.isdisjoint({row.image_id for row in reference()})


def test_a_sentence_of_evaluation_is_not_trained_on_even_in_capitals() -> None:
    write_coco("val", 1, 6)
    write_coco("train", 100, 9, greys=1)
    file = Path("source/annotations/captions_train.json")
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] = "VAL thing 1"
    file.write_text(json.dumps(content))
    run("coco", reference_images=6)
    assert 100 not in {row.image_id for row in finetune()}


def test_an_image_that_is_in_both_splits_is_not_trained_on() -> None:
    write_coco("val", 1, 10)
    write_coco("train", 100, 9)
    Path("source/train/100.png").write_bytes(Path("source/val/1.png").read_bytes())
    run("coco")
    assert 100 not in {row.image_id for row in finetune()}
    assert len(list((paths.DATASET / "images").iterdir())) == 18


def test_splits_that_both_count_from_one_get_ids_of_their_own() -> None:
    write_coco("val", 1, 10)
    write_coco("train", 1, 8, greys=100)
    run("coco")
    rows = finetune() + reference()
    assert len({row.caption_id for row in rows}) == len({row.image for row in rows}) == 18
    assert {row.caption_id for row in reference()} == set(range(1, 11))


def test_ids_that_are_apart_are_kept() -> None:
    write_coco("val", 1, 10)
    write_coco("train", 100, 8)
    run("coco")
    assert {row.caption_id for row in finetune()} == set(range(100, 108))


def test_a_larger_reference_keeps_the_evaluation_captions() -> None:
    write_folder(30)
    run("folder", reference_images=6)
    before = evaluation()
    run("folder", reference_images=20)
    assert evaluation() == before


@pytest.mark.parametrize(("which", "agains"), [("shortest", 0), ("first", 1)])
def test_the_raw_prompt_is_the_caption_asked_for(which: str, agains: int) -> None:
    write_folder(18, captions=2)
    file = Path("source/captions.jsonl")
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))  # the longer captions first
    run("folder", caption=which)
    assert {row.caption.count("again") for row in finetune() + reference()} == {agains}


def test_a_random_raw_prompt_is_random_by_seed() -> None:
    write_folder(18, captions=4)
    run("folder", caption="random")
    lengths = {row.caption.count("again") for row in reference()}
    before = reference()
    run("folder", caption="random")
    assert len(lengths) > 1
    assert reference() == before


# ------------------------------------------------------------------------------------------------ when it cannot


@pytest.mark.parametrize(("count", "key"), [(9, "data.reference_images is 10"), (17, "data.finetune_captions is 8")])
def test_too_few_images_are_one_line_with_the_key_to_change(count: int, key: str) -> None:
    write_folder(count)
    with pytest.raises(UserError) as caught:
        run("folder")
    assert key in str(caught.value)
    assert f"{count} images" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failure_leaves_the_earlier_output() -> None:
    run()
    before = evaluation()
    with pytest.raises(UserError):
        run("folder", path="nowhere")
    assert evaluation() == before


def test_a_broken_image_that_was_chosen_is_named() -> None:
    write_folder(18)
    for path in Path("source").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"source/\d+\.png \(image \d+\) is empty"):
        run("folder")
