"""Files out of hostile archives: nothing is written elsewhere, and what is wrong is one line."""

import struct
from pathlib import Path

import pytest
from coco_server import zipped as make

from t2i_feedback.datasets import zipped
from t2i_feedback.foundation.errors import UserError


def extract(folder: Path, content: bytes, member: str = "val/a.jpg", limit: int = 10_000) -> bytes:
    (folder / "a.zip").write_bytes(content)
    with zipped.opened(folder / "a.zip") as archive:
        zipped.extract(archive, member, folder / "out" / "a.jpg", limit)
    return (folder / "out" / "a.jpg").read_bytes()


def refusal(folder: Path, content: bytes, **options: object) -> str:
    inside = folder / "inside"
    inside.mkdir()
    with pytest.raises(UserError) as caught:
        extract(inside, content, **options)
    assert "\n" not in str(caught.value)
    assert "a.zip" in str(caught.value)
    assert [file for file in folder.rglob("*") if file.is_file()] == [inside / "a.zip"]
    return str(caught.value)


def test_one_member_is_unpacked_and_no_other(tmp_path: Path) -> None:
    assert extract(tmp_path, make({"val/a.jpg": b"a", "val/b.jpg": b"b"})) == b"a"
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["a.jpg", "a.zip"]


@pytest.mark.parametrize("name", ["../evil", "val/../../evil", "/tmp/evil", "..\\evil"])
def test_an_archive_with_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    assert f"member {name!r}: the file" in refusal(tmp_path, make({"val/a.jpg": b"a", name: b"evil"}))


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    content = make({"val/a.jpg": b"a", "val/link": b"/etc"}, links=("val/link",))
    assert "member 'val/link' is a link" in refusal(tmp_path, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    content = make({"val/a.jpg": b"a", "val/b.jpg": b"b"}).replace(b"val/b.jpg", b"val/a.jpg")
    assert "member 'val/a.jpg' is there twice" in refusal(tmp_path, content)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    content = make({"val/a.jpg": bytes(5_000_000)})
    assert len(content) < 10_000
    assert "would have 5000000 bytes; more than 10000 are not unpacked" in refusal(tmp_path, content)


def test_a_bomb_that_lies_about_its_size_is_not_unpacked(tmp_path: Path) -> None:
    size = struct.pack("<I", 5_000_000)
    content = make({"val/a.jpg": bytes(5_000_000)})
    assert content.count(size) == 2  # once in the local header, once in the directory
    assert "cannot be unpacked" in refusal(tmp_path, content.replace(size, struct.pack("<I", 9_000)))


def test_a_member_that_is_damaged_is_named(tmp_path: Path) -> None:
    content = bytearray(make({"val/a.jpg": bytes(range(256)) * 20}))
    content[60] ^= 0xFF
    assert "val/a.jpg cannot be unpacked" in refusal(tmp_path, bytes(content))


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "val/a.jpg is not in the archive" in refusal(tmp_path, make({"val/b.jpg": b"b"}))


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", make({"val/a.jpg": b"a"})[:-30]])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    assert "is not a zip archive" in refusal(tmp_path, content)
