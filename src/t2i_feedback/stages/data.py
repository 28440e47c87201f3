"""data: choose the captions to fine-tune on, the captions to evaluate on and the real images to compare with.

The evaluation captions are those of the first reference images. No image and no raw prompt is in both fine-tuning and
evaluation. With `data.fetch`, what is chosen of MS-COCO and not there yet is downloaded first.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from t2i_feedback.datasets import choice
from t2i_feedback.datasets.section import Data
from t2i_feedback.foundation import lockfile, paths, pipeline, running, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.params import Keys, Seed, load
from t2i_feedback.foundation.rows import write_rows

if TYPE_CHECKING:
    from t2i_feedback.datasets.coco_download import CocoDownload


class Settings(Keys):
    seed: Seed
    data: Data


def main() -> None:
    stage = pipeline.running("data")
    try:
        choose(stage, load(Settings))
    except UserError as error:
        made = any(paths.DATASET in lockfile.outs(entry) for entry in lockfile.entries())
        kept = f"; a data set that was made here before comes back by `dvc checkout {paths.DATASET}`" if made else ""
        raise UserError(f"{error}{kept}") from None


def choose(stage: pipeline.Stage, p: Settings) -> None:
    place = f" in {p.data.path}" if p.data.fetch == "none" else f" at {p.data.mirror}, kept in {p.data.downloads}"
    source = p.data.source if p.data.source == "postcards" else f"{p.data.source}{place}"
    print(
        f"data: {p.data.finetune_captions} captions for fine-tuning and {p.data.evaluation_captions} for evaluation, "
        f"{p.data.reference_images} reference images from {source}"
    )
    with workspace.scratch(stage) as work, _downloading(p.data) as download:
        out = work / "dataset"
        (out / "images").mkdir(parents=True)
        train, val = choice.read_pools(p.data, p.seed, work, download)
        provide = download.images if download else choice.all_there
        chosen = choice.Choice(p.data.caption, p.seed, out / "images", provide, p.data.skip_unreadable)
        reference = chosen.draw(val, p.data.reference_images, "data.reference_images")
        evaluation = reference[: p.data.evaluation_captions]
        chosen.avoid(row.caption for row in evaluation)
        finetune = chosen.draw(train, p.data.finetune_captions, "data.finetune_captions")
        write_rows(out / paths.REFERENCE_CAPTIONS.name, reference)
        write_rows(out / paths.EVALUATION_CAPTIONS.name, evaluation)
        write_rows(out / paths.FINETUNE_CAPTIONS.name, finetune)
        if chosen.left_out:
            write_json(out / paths.LEFT_OUT.name, {"left_out": len(chosen.left_out), "why": chosen.left_out})
            print(f"data: {len(chosen.left_out)} images are left out, since they cannot be read ({paths.LEFT_OUT})")
        if p.data.source == "postcards":
            shutil.copytree(work / "postcards" / "annotations", out / "annotations")
        workspace.publish(stage, p, out, paths.DATASET)
    print(f"data: done, {len(finetune)} + {len(evaluation)} captions and {len(reference)} images in {paths.DATASET}")


@contextmanager
def _downloading(wanted: Data) -> "Iterator[CocoDownload | None]":
    """What fetches COCO's files, if they are to be fetched."""
    if wanted.fetch == "none":
        yield None
        return
    from t2i_feedback.datasets.coco_download import PUBLISHED, CocoDownload
    from t2i_feedback.datasets.download import Server

    published = PUBLISHED if wanted.checksums == "published" else {}
    with Server(wanted.mirror, wanted.connections) as server:
        yield CocoDownload(paths.root() / wanted.downloads, server, wanted.fetch, published, wanted.connections)


if __name__ == "__main__":
    running.run(main)
