import base64
import io
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from t2i_feedback.arms import by_name
from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.reporting import grids
from t2i_feedback.reporting.evidence import MeasuredArm


def image(path: Path, side: int, colour: str) -> Path:
    Image.new("RGB", (side, side), colour).save(path)
    return path


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))


def test_small_images_keep_their_pixels(tmp_path: Path) -> None:
    url = grids.data_url(image(tmp_path / "a.png", 64, "#123456"))
    assert url.startswith("data:image/png;base64,")
    assert decoded(url).convert("RGB").getpixel((5, 5)) == (0x12, 0x34, 0x56)


def test_large_images_are_reduced(tmp_path: Path) -> None:
    url = grids.data_url(image(tmp_path / "a.png", 1024, "red"))
    assert url.startswith("data:image/jpeg;base64,")
    assert decoded(url).size == (256, 256)


def test_spread_out_is_even_and_never_repeats() -> None:
    assert grids.spread_out(list(range(100)), 4) == [0, 25, 50, 75]
    assert grids.spread_out([3, 5], 12) == [3, 5]
    assert grids.spread_out([], 3) == []


def test_wrapped_lines_fit() -> None:
    font = ImageFont.load_default(11)
    lines = grids.wrapped("a small red house on the left of a green meadow", 80, font)
    assert " ".join(lines) == "a small red house on the left of a green meadow"
    assert all(font.getlength(line) <= 80 for line in lines)


@pytest.mark.parametrize("text", ["a café naïvely at the Donaudampfschiff", "红色的房子在绿色的草地上，夜晚的星星很亮"])
def test_a_word_that_is_wider_than_the_column_is_broken(text: str) -> None:
    font = ImageFont.truetype(grids.FONT, 10)
    lines = grids.wrapped(text, 80, font)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 80 for line in lines)


def test_letters_of_other_languages_than_english_have_shapes() -> None:
    font = ImageFont.truetype(grids.FONT, 10)
    missing = bytes(font.getmask("\ufffe"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "éïßøčğλжאع")


@pytest.mark.parametrize("rows", [0, 2])
def test_sheet_has_a_cell_for_every_arm_and_caption(tmp_path: Path, rows: int) -> None:
    arms = []
    for name, colour in (("raw", "red"), ("enhanced", "blue")):
        (tmp_path / name).mkdir()
        image(tmp_path / name / "a.png", 64, colour)
        rows_of_arm = {i: ImageRow(caption_id=i, round=1, prompt="", image="a.png") for i in range(rows)}
        arms.append(MeasuredArm(by_name(name), tmp_path / name, {}, {}, measured={}, images=rows_of_arm))
    sheet = grids.sheet({i: f"caption {i}" for i in range(rows)}, arms, side=32)
    assert sheet.size == (grids.CAPTION_WIDTH + 2 * 38 + 6, 26 + rows * 38)
    if rows:
        left, top = grids.CAPTION_WIDTH + 16, 26 + 16
        assert sheet.getpixel((left, top)) == (255, 0, 0)
        assert sheet.getpixel((left + 38, top + 38)) == (0, 0, 255)
