"""The gallery's page: one file, or a folder when it would be too large."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from t2i_feedback.foundation.files import write_bytes, write_text
from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.tools.gallery.collecting import Collection, Column

FOLDER = Path(__file__).parent
MOST = 60_000_000  # bytes of one file


def write(collection: Collection, out: Path) -> tuple[Path, int]:
    """Writes the page to `out`, or to index.html in a folder of that name. Returns where it is, and all its bytes."""
    html = _page(collection, {name: _data_url(image) for name, image in collection.images.items()})
    if len(html.encode()) <= MOST:
        write_text(out, html)
        return out, len(html.encode())
    folder = out.with_suffix("")
    for name, image in collection.images.items():
        write_bytes(folder / "images" / f"{name}.webp", image)
    collection.left_out.append(f"One file would be larger than {MOST / 1e6:.0f} MB: images lie beside the page.")
    html = _page(collection, {name: f"images/{name}.webp" for name in collection.images})
    write_text(folder / "index.html", html)
    return folder / "index.html", len(html.encode()) + sum(map(len, collection.images.values()))


def _page(collection: Collection, images: Mapping[str, str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = (FOLDER / "gallery.js").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("gallery.html.j2").render(
        script=script,
        script_hash=hashed,
        style=(FOLDER / "gallery.css").read_text(encoding="utf-8"),
        data=_data(collection, images),
        left_out=collection.left_out,
    )


def _data(collection: Collection, images: Mapping[str, str]) -> dict[str, Any]:
    return {
        "captions": [{"id": caption_id, "text": text} for caption_id, text in collection.captions.items()],
        "columns": [{"run": one.run, "arm": one.arm, "label": one.label} for one in collection.columns],
        "cells": [
            [_cell(column, caption_id, collection.digests[number, caption_id]) for caption_id in collection.captions]
            for number, column in enumerate(collection.columns)
        ],
        "images": images,
    }


def _cell(column: Column, caption_id: int, digest: str) -> dict[str, Any]:
    """What is known of one image; what was not measured is left out."""
    image, measured = column.images[caption_id], column.measured.get(caption_id)
    known: dict[str, Any] = {
        "image": digest,
        "prompt": image.prompt,
        "rounds": [_round(row) for row in column.rounds.get(caption_id, (image,))],
    }
    if measured is not None:
        fields = ("alignment", "judge_score", "held_out_score", "p_yes", "accepted")
        known |= {name: getattr(measured, name) for name in fields if getattr(measured, name) is not None}
    return known


def _round(row: ImageRow) -> dict[str, Any]:
    known = {"prompt": row.prompt, "p_yes": row.p_yes, "accepted": row.accepted, "missed": row.feedback}
    return {name: value for name, value in known.items() if value is not None}


def _data_url(image: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(image).decode()}"
