"""COCO's captions layout: `annotations/captions_<split>.json` beside the images in `<split>/` or `images/<split>/`."""

import json
from pathlib import Path

from t2i_feedback.datasets.captioned import (
    Caption,
    CaptionedImage,
    Problems,
    check_caption,
    check_facts,
    check_file_name,
    first_repeated,
    read_text,
)
from t2i_feedback.foundation.errors import UserError


def read(root: Path, split: str) -> list[CaptionedImage]:
    """The split's images that have captions, by image id, captions in the file's order. No image is opened.

    Raises UserError that names the file and the id of every entry that is not as COCO lays it out.
    """
    file = root / "annotations" / f"captions_{split}.json"
    images, annotations = _parse(file)
    problems, names = Problems(), dict[int, str]()
    for entry in images:
        with problems.gathered():
            image_id = _id(entry, "id", f"{file}: an image")
            where = f"{file}: image {image_id}"
            if image_id in names:
                raise UserError(f"{where} is there twice")
            names[image_id] = check_file_name(_value(entry, "file_name", where), where)
    problems.raise_any()
    captions: dict[int, list[Caption]] = {}
    for entry in annotations:
        with problems.gathered():
            caption_id = _id(entry, "id", f"{file}: an annotation")
            where = f"{file}: annotation {caption_id}"
            image_id = _id(entry, "image_id", where)
            if image_id not in names:
                raise UserError(f"{where} is of image {image_id}, which the file does not list")
            text = check_caption(_value(entry, "caption", where), where)
            facts = check_facts(entry.get("facts"), where)
            captions.setdefault(image_id, []).append(Caption(caption_id, text, facts))
    repeated = first_repeated(caption.caption_id for several in captions.values() for caption in several)
    if repeated is not None:
        problems.found.append(f"{file}: annotation {repeated} is there twice")
    problems.raise_any()
    if not captions:
        raise UserError(f"{file} has no captions")
    folder = _image_folder(root, split)
    return [CaptionedImage(i, folder, names[i], tuple(captions[i])) for i in sorted(captions)]


def check_place(root: Path, split: str) -> None:
    """Raises UserError when the split's captions or its image folder are not there. Nothing is read."""
    file = root / "annotations" / f"captions_{split}.json"
    if not file.exists():
        raise UserError(f"{file} cannot be read: No such file or directory")
    _image_folder(root, split)


def _parse(file: Path) -> tuple[list[dict], list[dict]]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    lists = []
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file} is not in COCO's layout: it needs a list of objects called {key!r}")
        lists.append(entries)
    return lists[0], lists[1]


def _value(entry: dict, key: str, where: str) -> object:
    if key not in entry:
        raise UserError(f"{where} has no {key!r}")
    return entry[key]


def _id(entry: dict, key: str, where: str) -> int:
    value = _value(entry, key, where)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UserError(f"{where} has {key} {value!r}, which is not a whole number from 0")
    return value


def _image_folder(root: Path, split: str) -> Path:
    places = (root / split, root / "images" / split)
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"there is no image folder: neither {places[0]} nor {places[1]} exists")
