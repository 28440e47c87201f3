"""Reading COCO's captions layout, from well-made files and from hostile ones."""

import json
from pathlib import Path

import pytest
from PIL import Image

from t2i_feedback.datasets import coco
from t2i_feedback.datasets.captioned import store
from t2i_feedback.foundation.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of two images, the first with two captions."""
    folder = tmp_path / "coco" / "val"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6), "red").save(folder / name)
    write(tmp_path / "coco")
    return tmp_path / "coco"


def write(root: Path, images: object = None, annotations: object = None) -> None:
    images = images if images is not None else [{"id": 2, "file_name": "b.png"}, {"id": 1, "file_name": "a.png"}]
    if annotations is None:
        annotations = [annotation(11, 1, "A dog."), annotation(12, 1, "A brown dog."), annotation(13, 2, "A cat.")]
    write_text(root, json.dumps({"images": images, "annotations": annotations}))


def annotation(caption_id: int, image_id: int, caption: object) -> dict:
    return {"id": caption_id, "image_id": image_id, "caption": caption}


def write_text(root: Path, text: str) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "captions_val.json").write_text(text)


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        coco.read(root, "val")
    assert "\n" not in str(caught.value)
    assert "captions_val.json" in str(caught.value)
    return str(caught.value)


def storing(root: Path, image_id: int = 1) -> Image.Image:
    """The image as the data stage stores it, opened again."""
    out = root.parent / "out"
    out.mkdir(exist_ok=True)
    image = next(image for image in coco.read(root, "val") if image.image_id == image_id)
    return Image.open(out / store(image, out))


def storing_fails(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        storing(root)
    assert "a.png" in str(caught.value)
    assert "image 1" in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ captions


def test_captions_are_gathered_by_image(root: Path) -> None:
    images = coco.read(root, "val")
    assert [image.image_id for image in images] == [1, 2]
    assert [caption.text for caption in images[0].captions] == ["A dog.", "A brown dog."]
    assert [caption.caption_id for caption in images[0].captions] == [11, 12]


def test_images_may_lie_below_a_folder_called_images(root: Path) -> None:
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val")
    assert coco.read(root, "val")[0].path == root / "images" / "val" / "a.png"


def test_facts_come_along(root: Path) -> None:
    facts = {"background": "meadow", "things": [{"kind": "car", "colour": "red", "size": None, "column": None}]}
    write(root, annotations=[annotation(11, 1, "A red car in a meadow.") | {"facts": facts}])
    assert coco.read(root, "val")[0].captions[0].facts == facts


def test_facts_of_another_form_are_named(root: Path) -> None:
    write(root, annotations=[annotation(11, 1, "A dog.") | {"facts": {"dog": 1}}])
    with pytest.raises(UserError, match="facts must be an object with `background` and `things`"):
        coco.read(root, "val")


def test_images_without_captions_are_left_out(root: Path) -> None:
    write(root, annotations=[annotation(11, 1, "A dog.")])
    assert [image.image_id for image in coco.read(root, "val")] == [1]


def test_html_in_a_caption_stays_text(root: Path) -> None:
    write(root, annotations=[annotation(11, 1, "<script>alert('x')</script> & a dog")])
    assert coco.read(root, "val")[0].captions[0].text == "<script>alert('x')</script> & a dog"


@pytest.mark.parametrize("text", [" ".join(["word"] * 400), "🐕 in the ❄️ 👨‍👩‍👧", "一只狗", "ein Hündchen"])
def test_long_and_foreign_captions_pass(root: Path, text: str) -> None:
    write(root, annotations=[annotation(11, 1, text)])
    assert coco.read(root, "val")[0].captions[0].text == text


def test_white_space_is_tidied(root: Path) -> None:
    write(root, annotations=[annotation(11, 1, " A dog\n on\u2028a  beach. \n")])
    assert coco.read(root, "val")[0].captions[0].text == "A dog on a beach."


@pytest.mark.parametrize(
    ("caption", "complaint"),
    [("", "empty"), (" \n", "empty"), ("a\0b", "NUL"), (None, "not text"), (7, "not text"), ("\ud800", "Unicode")],
)
def test_a_caption_that_is_no_sentence_is_named_and_refused(root: Path, caption: object, complaint: str) -> None:
    write(root, annotations=[annotation(11, 1, caption)])
    message = refusal(root)
    assert complaint in message
    assert "annotation 11" in message


# ------------------------------------------------------------------------------------------------ hostile annotations


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "x/../../a.png", "..\\a.png", "", "a\0.png", 5, None])
def test_a_file_name_outside_the_folder_is_refused(root: Path, name: object) -> None:
    write(root, images=[{"id": 1, "file_name": name}], annotations=[annotation(11, 1, "A dog.")])
    assert "image 1" in refusal(root)


def test_an_image_listed_twice_is_refused(root: Path) -> None:
    write(root, images=[{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}])
    assert "image 1 is there twice" in refusal(root)


def test_an_annotation_listed_twice_is_refused(root: Path) -> None:
    write(root, annotations=[annotation(11, 1, "A dog."), annotation(11, 2, "A cat.")])
    assert "annotation 11 is there twice" in refusal(root)


def test_an_annotation_of_an_unknown_image_is_refused(root: Path) -> None:
    write(root, annotations=[annotation(11, 9, "A dog.")])
    assert "annotation 11 is of image 9" in refusal(root)


@pytest.mark.parametrize("key", ["id", "image_id", "caption"])
def test_a_missing_key_is_named(root: Path, key: str) -> None:
    broken = annotation(11, 1, "A dog.")
    del broken[key]
    write(root, annotations=[broken])
    assert f"has no {key!r}" in refusal(root)


@pytest.mark.parametrize("value", ["1", 1.5, True, -1, None, 2**63])
def test_an_id_that_is_no_whole_number_is_refused(root: Path, value: object) -> None:
    write(root, images=[{"id": value, "file_name": "a.png"}])
    assert "whole number" in refusal(root)


@pytest.mark.parametrize("text", ["", "no JSON", '{"images": [', "[" * 100_000])
def test_what_is_not_json_is_refused(root: Path, text: str) -> None:
    write_text(root, text)
    assert "not JSON" in refusal(root)


@pytest.mark.parametrize(
    "text", ["[]", "7", "{}", '{"images": [], "annotations": {}}', '{"images": [1], "annotations": []}']
)
def test_json_of_another_layout_is_refused(root: Path, text: str) -> None:
    write_text(root, text)
    assert "COCO's layout" in refusal(root)


def test_bytes_that_are_not_utf8_are_refused(root: Path) -> None:
    (root / "annotations" / "captions_val.json").write_bytes(b'{"images": "\xff"}')
    assert "UTF-8" in refusal(root)


def test_a_file_without_captions_is_refused(root: Path) -> None:
    write(root, annotations=[])
    assert "no captions" in refusal(root)


def test_a_missing_annotation_file_is_named(root: Path) -> None:
    (root / "annotations" / "captions_val.json").unlink()
    assert "No such file" in refusal(root)


def test_a_missing_image_folder_is_named_with_both_places(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"neither .*val nor .*images/val exists"):
        coco.read(root, "val")


# ------------------------------------------------------------------------------------------------ image files


def test_upright_rgb_files_are_stored_byte_for_byte(root: Path) -> None:
    stored = storing(root)
    assert Path(stored.filename).read_bytes() == (root / "val" / "a.png").read_bytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(root: Path, mode: str) -> None:
    file_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    Image.new("L", (8, 6), 255).convert(mode).save(root / "val" / "a.png", format=file_format)
    stored = storing(root)
    assert stored.mode == "RGB"
    assert stored.size == (8, 6)
    assert min(stored.getpixel((4, 3))) > 250


def test_sixteen_bit_grey_keeps_its_shades(root: Path) -> None:
    Image.new("I;16", (8, 6), 128 * 257).save(root / "val" / "a.png")
    assert storing(root).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_becomes_white(root: Path) -> None:
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(root / "val" / "a.png")
    assert storing(root).getpixel((0, 0)) == (255, 255, 255)


def test_a_rotated_photograph_is_turned_upright(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(root / "val" / "a.png", format="JPEG", exif=exif)
    assert storing(root).size == (6, 8)


def test_a_missing_image_is_named(root: Path) -> None:
    (root / "val" / "a.png").unlink()
    assert "missing" in storing_fails(root)


def test_an_empty_file_is_named(root: Path) -> None:
    (root / "val" / "a.png").write_bytes(b"")
    assert "0 bytes" in storing_fails(root)


def test_a_truncated_image_is_named(root: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(root / "val" / "a.png")
    whole = (root / "val" / "a.png").read_bytes()
    (root / "val" / "a.png").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in storing_fails(root)


def test_a_file_that_is_no_image_is_named(root: Path) -> None:
    (root / "val" / "a.png").write_text("<svg onload='x'/>")
    assert "not an image" in storing_fails(root)


def test_a_folder_instead_of_an_image_is_named(root: Path) -> None:
    (root / "val" / "a.png").unlink()
    (root / "val" / "a.png").mkdir()
    assert "not a file" in storing_fails(root)


def test_a_decompression_bomb_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # the image has 48
    assert "too large" in storing_fails(root)


def test_a_link_to_a_file_elsewhere_is_read_as_dvcs_cache_and_the_hubs_have_them(root: Path) -> None:
    outside = root.parent / "0a1b2c"
    (root / "val" / "a.png").rename(outside)
    (root / "val" / "a.png").symlink_to(outside)
    assert storing(root).size == (8, 6)
    outside.unlink()
    assert "is a link to a file that is missing" in storing_fails(root)


def test_the_image_folder_itself_may_be_a_link(root: Path) -> None:
    (root / "val").rename(root.parent / "elsewhere")
    (root / "val").symlink_to(root.parent / "elsewhere")
    assert storing(root).size == (8, 6)


def test_broken_images_that_nobody_chooses_do_no_harm(root: Path) -> None:
    (root / "val" / "b.png").write_bytes(b"")
    assert storing(root, image_id=1).size == (8, 6)
