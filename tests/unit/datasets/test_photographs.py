"""Images as cameras, phones, scanners and other systems write them: read rightly, or named."""

import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i_feedback.datasets import choice, folder, sources
from t2i_feedback.datasets.captioned import Caption, CaptionedImage, store
from t2i_feedback.datasets.section import Data
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import open_rgb

GREYS = [[0.0, 0.25], [0.5, 1.0]]
PHOTO = {"source": "folder", "fetch": "none", "mirror": "http://x", "downloads": "d", "checksums": "first"}
PHOTO |= {"connections": 1, "train_split": "a", "val_split": "b", "caption": "first", "finetune_captions": 2}
PHOTO |= {"evaluation_captions": 4, "reference_images": 4}


def stored(tmp_path: Path, name: str) -> np.ndarray:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    image = CaptionedImage(1, tmp_path, name, (Caption(1, "a dog"),))
    return np.asarray(open_rgb(out / store(image, out)))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array(GREYS, np.float32), [[0, 64], [128, 255]]),
        (np.array(GREYS, np.float32) * 255, [[0, 64], [128, 255]]),
        (np.array(GREYS, np.float32) * 65535, [[0, 64], [128, 255]]),
        ((np.array(GREYS) * 65535).astype(np.uint16), [[0, 63], [127, 255]]),
    ],
)
def test_grey_of_many_bits_is_not_black(tmp_path: Path, array: np.ndarray, expected: list[list[int]]) -> None:
    Image.fromarray(array).save(tmp_path / "a.tif")
    found = stored(tmp_path, "a.tif")
    assert np.abs(found[..., 0].astype(int) - np.array(expected)).max() <= 1
    assert (found[..., 0] == found[..., 2]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.0, 1e9])
def test_numbers_that_are_no_brightness_are_named(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0.0, value]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif \(image 1\) holds numbers from"):
        stored(tmp_path, "a.tif")


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("1", 1), ("L", 255), ("P", 0), ("LA", (255, 255)), ("RGBA", (255, 255, 255, 0)), ("CMYK", (0, 0, 0, 0))],
)
def test_every_common_mode_is_read_as_it_looks(tmp_path: Path, mode: str, colour) -> None:
    image = Image.new(mode, (4, 3), colour)
    if mode == "P":
        image.putpalette([255, 255, 255] * 256)
    image.save(tmp_path / "a.tif")
    assert (stored(tmp_path, "a.tif") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (stored(tmp_path, "a.jpg") == expected).all()


@pytest.mark.parametrize(
    ("kind", "length", "value"), [(2, 4, b"72\0\0"), (7, 4, b"\xff\0\xff\0"), (3, 1, b"\0\x48\0\0")]
)
def test_other_words_of_exif_do_not_matter(tmp_path: Path, kind: int, length: int, value: bytes) -> None:
    """A resolution that is text, or rubbish: it should be two whole numbers."""
    turned = struct.pack(">HHI4s", 0x0112, 3, 1, b"\0\x06\0\0")
    resolution = struct.pack(">HHI4s", 0x011A, kind, length, value)
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + turned + resolution + b"\0\0\0\0"
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.jpg", exif=block)
    assert stored(tmp_path, "a.jpg").shape == (8, 6, 3)


def test_an_exif_block_of_rubbish_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff rubbish")
    assert stored(tmp_path, "a.jpg").shape == (6, 8, 3)


# ------------------------------------------------------------------------------------------------ names, sizes


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_that_is_composed_otherwise_is_found(tmp_path: Path, listed: str, on_disk: str) -> None:
    name = "été/Ünder é.png"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    file.parent.mkdir()
    Image.new("RGB", (8, 6)).save(file)
    assert stored(tmp_path, unicodedata.normalize(listed, name)).shape == (6, 8, 3)


def test_a_name_that_differs_in_capitals_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "IMG_1.PNG")
    with pytest.raises(UserError, match=r"img_1\.png \(image 1\) is missing; there is IMG_1\.PNG"):
        stored(tmp_path, "img_1.png")


def test_a_large_photograph_is_shown_at_a_bounded_size(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "a.jpg")
    assert open_rgb(tmp_path / "a.jpg", 512).size == (512, 384)
    assert open_rgb(tmp_path / "a.jpg").size == (4000, 3000)


# ------------------------------------------------------------------------------------------------ all problems at once


def album(root: Path, count: int, same: int = 0) -> list[CaptionedImage]:
    """Different images; the last `same` of them are copies of the first."""
    for i in range(count):
        shade = 0 if i >= count - same else i * 9
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(root / f"{i}.png")
    lines = [f'{{"image": "{i}.png", "caption": "number {i}"}}\n' for i in range(count)]
    (root / "captions.jsonl").write_text("".join(lines))
    return folder.read(root)


def test_every_image_that_cannot_be_read_is_in_one_message(tmp_path: Path) -> None:
    images = album(tmp_path, 12)
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"" if i % 2 else b"rubbish")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"7 problems: .*; and 2 more; data\.skip_unreadable: true leaves") as raised:
        choice.Choice("first", 1, tmp_path / "out", choice.all_there).draw(images, 12, "data.reference_images")
    assert "\n" not in str(raised.value)
    skipping = choice.Choice("first", 1, tmp_path / "out", choice.all_there, skip_unreadable=True)
    assert len(skipping.draw(images, 5, "data.reference_images")) == 5
    assert 0 < len(skipping.left_out) <= 7
    with pytest.raises(UserError, match=r"only 0 can be used .*, [0-9] cannot be read"):
        skipping.draw(images, 3, "data.finetune_captions")


def test_every_line_that_cannot_be_read_is_in_one_message(tmp_path: Path) -> None:
    lines = [
        "not json",
        '{"image": "a.png"}',
        '{"image": "../a.png", "caption": "x"}',
        '{"image": "a.png", "caption": " "}',
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as raised:
        folder.read(tmp_path)
    assert all(f"captions.jsonl:{number}" in str(raised.value) for number in (1, 2, 3, 4))


def test_a_whole_split_can_be_had_that_holds_an_image_twice(tmp_path: Path, capsys) -> None:
    images = album(tmp_path, 8, same=2)
    (tmp_path / "out").mkdir()
    chosen = choice.Choice("first", 1, tmp_path / "out", choice.all_there)
    rows = chosen.draw(images, 8, "data.reference_images")
    assert len({row.image_id for row in rows}) == len({row.image for row in rows}) == 8
    assert "2 images are the same as others of their set" in capsys.readouterr().out
    fewer = choice.Choice("first", 1, tmp_path / "out", choice.all_there).draw(images, 6, "data.reference_images")
    assert [row.image_id for row in fewer] == [row.image_id for row in rows[:6]]


def test_what_is_missing_is_said_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    album(tmp_path / "photos", 4)
    monkeypatch.chdir(tmp_path)
    wanted = Data(**PHOTO, path="photos")
    sources.foresee(wanted, tmp_path)
    (tmp_path / "photos/2.png").unlink()
    with pytest.raises(UserError, match=r"photos/2\.png is missing; data\.skip_unreadable"):
        sources.foresee(wanted, tmp_path)
    sources.foresee(Data(**PHOTO, path="photos", skip_unreadable=True), tmp_path)


def test_an_experiments_copy_without_the_pictures_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    album(tmp_path / "photos", 4)
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    for source in ("folder", "coco"):
        with pytest.raises(
            UserError, match=r"an experiment's own copy .*`dvc add photos` and commit, or set data\.path to /"
        ):
            sources.foresee(Data(**PHOTO | {"source": source}, path="photos"), tmp_path)
