"""The user's own data: a folder of images with `captions.jsonl` or `captions.csv`.

    {"image": "beach/dog.jpg", "caption": "a dog runs along the sea"}        one per line, or
    image,caption                                                            a table with this header

Image names are relative to the folder. An image that is named on several lines has several captions.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from t2i_feedback.datasets.captioned import (
    Caption,
    CaptionedImage,
    Problems,
    check_caption,
    check_facts,
    check_file_name,
    read_text,
)
from t2i_feedback.foundation.errors import UserError


def read(root: Path) -> list[CaptionedImage]:
    """The folder's images in the order of their first mention, numbered from 1; a caption's id is its line's number.

    No image is opened. Raises UserError that names the file and line of every entry that is not as it should be.
    """
    file, problems = _captions_file(root), Problems()
    captions: dict[str, list[Caption]] = {}
    for number, entry in _jsonl(file, problems) if file.suffix == ".jsonl" else _table(file, problems):
        with problems.gathered():
            where = f"{file}:{number}"
            for key in ("image", "caption"):
                if entry.get(key) is None:
                    raise UserError(f"{where} has no {key!r}")
            name = str(Path(check_file_name(entry["image"], where)))
            caption = Caption(number, check_caption(entry["caption"], where), check_facts(entry.get("facts"), where))
            captions.setdefault(name, []).append(caption)
    problems.raise_any()
    if not captions:
        raise UserError(f"{file} has no captions")
    return [CaptionedImage(i, root, name, tuple(several)) for i, (name, several) in enumerate(captions.items(), 1)]


def _captions_file(root: Path) -> Path:
    files = [root / "captions.jsonl", root / "captions.csv"]
    found = [file for file in files if file.exists()]
    if not found:
        raise UserError(f"{root} has neither captions.jsonl nor captions.csv")
    if len(found) == 2:
        raise UserError(f"{root} has both captions.jsonl and captions.csv: keep one")
    return found[0]


def _jsonl(file: Path, problems: Problems) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        with problems.gathered():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}:{number} is not JSON: {error}") from None
            if not isinstance(entry, dict):
                raise UserError(f"{file}:{number} is not an object with 'image' and 'caption'")
            yield number, entry


def _table(file: Path, problems: Problems) -> Iterator[tuple[int, dict]]:
    rows = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        counted = Counter(rows.fieldnames or ())
        for column in ("caption", "image"):
            if counted[column] != 1:
                has = f"{counted[column]} columns" if counted[column] else "no column"
                raise UserError(f"{file} has {has} called {column}: line 1 must name image and caption, each once")
        for row in rows:
            with problems.gathered():
                if any(row.get(None) or ()):
                    raise UserError(
                        f"{file}:{rows.line_num} has more cells than columns: a caption with a comma is put in quotes"
                    )
                yield rows.line_num, {"image": row["image"], "caption": row["caption"]}
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num + 1} is not CSV: {error}") from None
