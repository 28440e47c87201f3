"""A person's score sheet: what was typed is found, kept, and read in whatever way a spreadsheet program saves it."""

import numpy as np
import pytest
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards.sheet import Sheet

PROMPTS = ["a cat", "a dog", "a cat"]


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


IMAGES = [image(seed) for seed in range(3)]


@pytest.fixture
def sheet(tmp_path):
    return Sheet(tmp_path / "feedback", "dark <images>")


def fill(sheet: Sheet, scores: dict[int, str]) -> None:
    """Type scores into rows, counted from 0, as an editor would."""
    lines = sheet.path.read_text(encoding="utf-8").splitlines()
    for row, score in scores.items():
        lines[row + 1] += score
    sheet.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def scores(sheet: Sheet, names: list[str]) -> list[float | None]:
    lines = sheet.read()
    return [lines[name].score for name in names]


def test_a_image_gets_a_row_without_a_score_and_a_file(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    assert len(set(names)) == 3
    assert scores(sheet, names) == [None] * 3
    with Image.open(sheet.folder / names[1]) as saved:
        assert saved.tobytes() == IMAGES[1].tobytes()


def test_the_page_shows_every_image_and_asks_for_the_preference(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    page = sheet.page.read_text()
    assert "dark &lt;images&gt;" in page
    assert all(f'src="{name}"' in page for name in names)


def test_a_partial_sheet_names_what_is_open(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    fill(sheet, {0: "3", 2: "7.5"})
    assert scores(sheet, names) == [3.0, None, 7.5]
    assert sheet.unscored(names) == [names[1]]


def test_a_image_that_is_drawn_again_finds_its_score(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    fill(sheet, {1: "4"})
    assert sheet.enter([image(1)], ["a dog"]) == [names[1]]


def test_a_grey_level_apart_is_the_same_image_and_another_prompt_is_not(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    pixels = np.asarray(IMAGES[1]).astype(int)
    near = Image.fromarray(np.where(pixels > 9, pixels - 1, pixels).astype(np.uint8))
    assert sheet.enter([near], ["a dog"]) == [names[1]]
    assert sheet.enter([near], ["a cat"]) != [names[1]]
    far = Image.fromarray(np.where(pixels > 9, pixels - 9, pixels).astype(np.uint8))
    assert sheet.enter([far], ["a dog"]) != [names[1]]


def test_new_rows_come_behind_what_was_typed_and_change_no_byte_of_it(sheet):
    sheet.enter(IMAGES[:1], PROMPTS[:1])
    fill(sheet, {0: "3"})
    typed = sheet.path.read_bytes() + b"remarks of mine,,\n"
    sheet.path.write_bytes(typed)
    names = sheet.enter(IMAGES, PROMPTS)
    assert sheet.path.read_bytes().startswith(typed)
    assert scores(sheet, names) == [3.0, None, None]


def test_a_file_without_a_last_line_break_is_continued_on_a_new_line(sheet):
    names = sheet.enter(IMAGES[:1], PROMPTS[:1])
    sheet.path.write_text(f"image,prompt,score\n{names[0]},a cat,5")
    assert scores(sheet, sheet.enter(IMAGES, PROMPTS)) == [5.0, None, None]


@pytest.mark.parametrize("end", ["\r\n", "\r"])  # the latter of "CSV (Macintosh)"
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_what_spreadsheets_make_of_commas_letters_and_line_ends_is_understood(sheet, encoding, end):
    names = sheet.enter(IMAGES, ["a café", "a dog", "a cat"])
    rows = [f"{name};a café;{score}" for name, score in zip(names, ("7,5", "", "10"), strict=True)]
    sheet.path.write_bytes(end.join(["Image;Prompt;Score", *rows]).encode(encoding))
    assert scores(sheet, names) == [7.5, None, 10.0]
    more = sheet.enter([image(9)], ["a fish"])
    assert scores(sheet, names + more) == [7.5, None, 10.0, None]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("11", "line 3: the score 11 is not from 1 to 10"),
        ("0", "line 3: the score 0 is not from 1 to 10"),
        ("nan", "line 3: the score nan is not from 1 to 10"),
        ("nice", "line 3: the score 'nice' is not a number from 1 to 10"),
    ],
)
def test_a_score_that_is_none_is_named_with_its_line(sheet, typed, said):
    sheet.enter(IMAGES, PROMPTS)
    fill(sheet, {1: typed})
    with pytest.raises(UserError, match=said) as problem:
        sheet.read()
    assert "\n" not in str(problem.value)
    assert "scores.csv" in str(problem.value)


def test_several_problems_are_counted(sheet):
    sheet.enter(IMAGES, PROMPTS)
    fill(sheet, {0: "12", 1: "nice"})
    with pytest.raises(UserError, match=r"line 2: .* \(and 1 more\); mend it and run again"):
        sheet.read()


def test_two_scores_for_one_image_are_refused_and_the_same_one_twice_is_not(sheet):
    name = sheet.enter(IMAGES[:1], PROMPTS[:1])[0]
    sheet.path.write_text(f"image,prompt,score\n{name},,5\n{name},,6\n")
    with pytest.raises(UserError, match="line 3: another score for the image of line 2"):
        sheet.read()
    sheet.path.write_text(f"image,prompt,score\n{name},,5\n{name},,5\n{name},,\n")
    assert scores(sheet, [name]) == [5.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,prompt,score\n".encode("utf-16")[:-1], "scores.csv is cut off in the middle of a letter"),
        (f"image,prompt,score\n{'a' * 200_000},,\n".encode(), "scores.csv is not CSV: field larger than"),
    ],
)
def test_a_sheet_that_is_broken_is_one_line(sheet, content, said):
    sheet.folder.mkdir()
    sheet.path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        sheet.read()


def test_a_sheet_whose_columns_are_gone_is_refused(sheet):
    sheet.folder.mkdir()
    sheet.path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column image, prompt, score"):
        sheet.enter(IMAGES, PROMPTS)
    assert sheet.path.read_text() == "a,b\n1,2\n"


def test_a_prompt_that_a_spreadsheet_would_run_is_quoted(sheet):
    sheet.enter(IMAGES[:1], ["=HYPERLINK(1)\nnext"])
    assert "'=HYPERLINK(1) next" in sheet.path.read_text(encoding="utf-8-sig")


def test_of_an_answer_and_a_cell_the_later_counts(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    sheet.answer(names[0], 8.0)
    assert scores(sheet, names) == [8.0, None, None]
    assert sheet.unscored(names) == names[1:]
    sheet.answer(names[0], 3.0)
    assert scores(sheet, names)[0] == 3.0
    before = sheet.path.read_bytes()
    sheet.path.write_bytes(before)  # a spreadsheet program saves what it had: nothing was typed
    assert scores(sheet, names)[0] == 3.0
    fill(sheet, {0: "9"})
    assert scores(sheet, names)[0] == 9.0
    sheet.answer(names[0], 2.0)
    assert scores(sheet, names)[0] == 2.0
    sheet.answer(names[0], None)
    assert scores(sheet, names)[0] is None


def test_an_answer_that_a_crash_cut_short_was_never_given(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    sheet.answer(names[0], 8.0)
    whole = sheet.answers.read_bytes()
    sheet.answers.write_bytes(whole + whole[: len(whole) // 2])
    assert scores(sheet, names) == [8.0, None, None]
    sheet.answer(names[1], 4.0)
    assert scores(sheet, names) == [8.0, 4.0, None]


def test_an_answer_is_checked_when_it_is_given_and_when_it_is_read(sheet):
    names = sheet.enter(IMAGES, PROMPTS)
    with pytest.raises(UserError, match="has no image"):
        sheet.answer("../elsewhere.png", 5.0)
    for wrong in (0.0, 11.0, float("nan")):
        with pytest.raises(ValueError):
            sheet.answer(names[0], wrong)
    assert not sheet.answers.exists()
    sheet.answers.write_text('{"image": "x", "score": 99}\n')
    with pytest.raises(UserError, match=r"answers\.jsonl:1 is no answer"):
        sheet.read()
