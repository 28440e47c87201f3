"""Rows on disk: what is written is read again, broken lines are named, and writing is all or nothing."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, read_rows, write_rows


def row(caption_id: int = 1, caption: str = "a dog") -> CaptionRow:
    return CaptionRow(caption_id=caption_id, image_id=1, caption=caption, image="images/1.png")


@pytest.mark.parametrize(
    "caption", ["a dog", "🐕\u2028 on\x85 two\x0b lines\n", '"quoted" \\ <b>&amp;</b>', "word " * 400]
)
def test_what_is_written_is_read_again(tmp_path: Path, caption: str) -> None:
    rows = [row(1, caption), row(2)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", CaptionRow) == rows


def test_no_rows_make_an_empty_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [])
    assert read_rows(tmp_path / "rows.jsonl", CaptionRow) == []


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro"):
        read_rows(tmp_path / "rows.jsonl", CaptionRow)


@pytest.mark.parametrize("line", ["no json", "{}", '{"caption_id": 1}', ""])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(row().model_dump_json() + "\n" + line + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is not a CaptionRow"):
        read_rows(tmp_path / "rows.jsonl", CaptionRow)


def test_rows_of_another_type_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row()])
    with pytest.raises(UserError, match="not a ImageRow"):
        read_rows(tmp_path / "rows.jsonl", ImageRow)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [row(1)])

    def interrupted():
        yield row(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "rows.jsonl", interrupted())
    assert [one.caption_id for one in read_rows(tmp_path / "rows.jsonl", CaptionRow)] == [1]


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    write_rows(tmp_path / "below" / "rows.jsonl", [row()])
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["rows.jsonl"]


def test_rows_cannot_be_changed_or_extended() -> None:
    with pytest.raises(ValidationError):
        row().caption = "a cat"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        CaptionRow(caption_id=1, image_id=1, caption="", image="", score=1)  # type: ignore[call-arg]


def test_json_is_written_with_sorted_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"b": 1, "a": {"d": 2, "c": 3}})
    assert (tmp_path / "metrics.json").read_text() == json.dumps({"a": {"c": 3, "d": 2}, "b": 1}, indent=2) + "\n"


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "metrics.json", {"fid": float("nan")})
    assert not (tmp_path / "metrics.json").exists()
