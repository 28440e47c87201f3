"""Reading the user's own captions and images."""

import json
from pathlib import Path

import pytest

from t2i_feedback.datasets import folder
from t2i_feedback.foundation.errors import UserError


def write_jsonl(root: Path, *entries: dict) -> None:
    (root / "captions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        folder.read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_json_lines_and_a_table_say_the_same(tmp_path: Path) -> None:
    for name in ("lines", "table"):
        (tmp_path / name).mkdir()
    write_jsonl(
        tmp_path / "lines", {"image": "a.jpg", "caption": 'a "dog", brown'}, {"image": "b.jpg", "caption": "a cat"}
    )
    (tmp_path / "table" / "captions.csv").write_text('image,caption\na.jpg,"a ""dog"", brown"\nb.jpg,a cat\n')
    lines, table = folder.read(tmp_path / "lines"), folder.read(tmp_path / "table")
    assert [(i.image_id, i.file_name, i.captions[0].text) for i in lines] == [
        (i.image_id, i.file_name, i.captions[0].text) for i in table
    ]


def test_an_image_on_several_lines_has_several_captions(tmp_path: Path) -> None:
    entries = [
        {"image": name, "caption": text} for name, text in (("a.jpg", "one"), ("b.jpg", "two"), ("./a.jpg", "three"))
    ]
    write_jsonl(tmp_path, *entries)
    images = folder.read(tmp_path)
    assert [[caption.text for caption in image.captions] for image in images] == [["one", "three"], ["two"]]


def test_a_caption_is_numbered_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('\n{"image": "a.jpg", "caption": "a dog"}\n')
    assert folder.read(tmp_path)[0].captions[0].caption_id == 2


def test_a_table_from_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\r\na.jpg,ein Hündchen\r\n", encoding="utf-8-sig", newline="")
    assert folder.read(tmp_path)[0].captions[0].text == "ein Hündchen"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg"])
def test_an_image_outside_the_folder_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path, {"image": name, "caption": "a dog"})
    assert "captions.jsonl:1" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["image", "caption"])
def test_a_missing_key_is_named_with_its_line(tmp_path: Path, key: str) -> None:
    entry = {"image": "a.jpg", "caption": "a dog"}
    write_jsonl(tmp_path, entry, {name: value for name, value in entry.items() if name != key})
    assert refusal(tmp_path).endswith(f"captions.jsonl:2 has no {key!r}")


def test_a_short_line_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg\n")
    assert "captions.csv:2 has no 'caption'" in refusal(tmp_path)


def test_a_table_without_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("a.jpg,a dog\n")
    assert "no column called caption:" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,caption\na.png,a red car, parked\n", "captions.csv:2 has more cells than columns"),
        ('image,caption\na.png,"a red car\nb.png,a dog\n', "captions.csv:2 is not CSV: unexpected end of data"),
        ('image,caption\na.png,"a red car" parked\n', "captions.csv:2 is not CSV: "),
        ("image,caption,caption\na.png,a dog,a brown dog\n", "has 2 columns called caption: line 1 must name"),
    ],
)
def test_a_table_that_would_cut_a_caption_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "captions.csv").write_text(text)
    assert said in refusal(tmp_path)


def test_empty_cells_behind_a_line_of_a_table_cut_nothing(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a red car,\n")
    assert folder.read(tmp_path)[0].captions[0].text == "a red car"


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"image": "a.jpg", "caption": "a dog"}\nnot json\n')
    assert "captions.jsonl:2 is not JSON" in refusal(tmp_path)


def test_an_empty_caption_is_named_with_its_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"image": "a.jpg", "caption": " "})
    assert "captions.jsonl:1: the caption is empty" in refusal(tmp_path)


def test_a_folder_without_captions_says_which_files_it_wants(tmp_path: Path) -> None:
    assert "neither captions.jsonl nor captions.csv" in refusal(tmp_path)


def test_two_caption_files_are_one_too_many(tmp_path: Path) -> None:
    write_jsonl(tmp_path, {"image": "a.jpg", "caption": "a dog"})
    (tmp_path / "captions.csv").write_text("image,caption\n")
    assert "keep one" in refusal(tmp_path)


def test_an_empty_file_has_no_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("")
    assert "no captions" in refusal(tmp_path)
