"""The arms' images of the same captions, for MLflow's image grid. For publishing: `finetune` must not know the arms."""

from collections.abc import Iterator
from pathlib import Path

from t2i_feedback import arms
from t2i_feedback.foundation import files, images, paths
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, read_rows
from t2i_feedback.tracking.runs import Run, image_key
from t2i_feedback.tracking.under_way import under_way

SHOWN = 12  # captions


def log(run: Run) -> None:
    """The first captions' images of every arm that is there, in a child run that is named by them.

    Other images, as a remote MLLM may lead to with the same parameters, are another child.
    """
    found = dict(_found())
    if not found:
        return
    digest = files.combined({key: files.digest(path) for key, path in found.items()})
    child = run.child(f"arms {digest[:7]}")
    there = child.images()
    missing = {key: path for key, path in found.items() if (key, 0) not in there}
    if missing or child.status != "FINISHED":
        with under_way(child):
            for key, path in missing.items():
                child.image(key, 0, images.open_rgb(path))


def _found() -> Iterator[tuple[str, Path]]:
    """Key and file of each image."""
    made = [paths.arm(name) for name in arms.NAMES if (paths.arm(name) / "images.jsonl").exists()]
    rows = {arm: {row.caption_id: row for row in read_rows(arm / "images.jsonl", ImageRow)} for arm in made}
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)[:SHOWN] if made else []
    for number, caption in enumerate(captions, 1):
        for arm in made:
            if row := rows[arm].get(caption.caption_id):
                yield image_key(f"{arm.name}/{number:02} {caption.caption}"), arm / row.image
