"""data: choose the captions to fine-tune on, the captions to evaluate on and the real images to compare with.

The evaluation captions are those of the first reference images. No image and no raw prompt is in both fine-tuning and
evaluation.
"""

import hashlib
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from t2i_feedback import params, paths, records, stages, workspace
from t2i_feedback.datasets import coco, folder, postcards
from t2i_feedback.datasets.captioned import Caption, CaptionedImage, store
from t2i_feedback.errors import UserError
from t2i_feedback.records import CaptionRow


def main() -> None:
    p = params.load()
    source = p.data.source if p.data.source == "postcards" else f"{p.data.source} in {p.data.path}"
    print(
        f"data: {p.data.finetune_captions} captions for fine-tuning and {p.data.evaluation_captions} for evaluation, "
        f"{p.data.reference_images} reference images from {source}"
    )
    with workspace.partial("data", workspace.digest([p.data, p.seed], [])) as work:
        shutil.rmtree(work)
        out = work / "dataset"
        (out / "images").mkdir(parents=True)
        train, val = _read_pools(p.data, p.seed, work)
        choice = _Choice(p.data.caption, p.seed, out / "images")
        reference = choice.draw(val, p.data.reference_images, "data.reference_images")
        evaluation = reference[: p.data.evaluation_captions]
        choice.avoid(row.caption for row in evaluation)
        finetune = choice.draw(train, p.data.finetune_captions, "data.finetune_captions")
        records.write(out / paths.REFERENCE_CAPTIONS.name, reference)
        records.write(out / paths.EVALUATION_CAPTIONS.name, evaluation)
        records.write(out / paths.FINETUNE_CAPTIONS.name, finetune)
        if p.data.source == "postcards":
            shutil.copytree(work / "postcards" / "annotations", out / "annotations")
        workspace.publish(out, paths.DATASET)
    print(f"data: done, {len(finetune)} + {len(evaluation)} captions and {len(reference)} images in {paths.DATASET}")


def _read_pools(wanted: params.Data, seed: int, work: Path) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """The images to draw fine-tuning captions from, and those to draw evaluation captions and references from."""
    if wanted.source == "folder":
        pool = folder.read(wanted.path)
        return pool, pool
    if wanted.source == "coco":
        train, val = coco.read(wanted.path, wanted.train_split), coco.read(wanted.path, wanted.val_split)
        return (train if wanted.train_split == wanted.val_split else _renumber(train, val)), val
    counts = {"train": wanted.finetune_captions, "val": wanted.reference_images}
    root = work / "postcards"
    for _ in tqdm(postcards.write_dataset(root, counts, seed), "drawing postcards", sum(counts.values()), disable=None):
        pass
    return coco.read(root, "train"), coco.read(root, "val")


def _renumber(train: list[CaptionedImage], val: list[CaptionedImage]) -> list[CaptionedImage]:
    """`train` with ids of its own: COCO's are, but home-made data sets often count each split from 1."""
    if _image_ids(train).isdisjoint(_image_ids(val)) and _caption_ids(train).isdisjoint(_caption_ids(val)):
        return train
    shift = max(_image_ids(val) | _caption_ids(val)) + 1
    return [
        CaptionedImage(
            image.image_id + shift,
            image.folder,
            image.file_name,
            tuple(Caption(caption.caption_id + shift, caption.text, caption.facts) for caption in image.captions),
        )
        for image in train
    ]


def _image_ids(images: list[CaptionedImage]) -> set[int]:
    return {image.image_id for image in images}


def _caption_ids(images: list[CaptionedImage]) -> set[int]:
    return {caption.caption_id for image in images for caption in image.captions}


class _Choice:
    """Draws images by a seeded shuffle, gives each its raw prompt, and uses no image (by its bytes) twice."""

    def __init__(self, which_caption: str, seed: int, images: Path):
        self.which_caption, self.seed, self.images = which_caption, seed, images
        self.used_ids: set[int] = set()
        self.used_bytes: set[bytes] = set()
        self.avoided_captions: set[str] = set()

    def avoid(self, captions: Iterable[str]) -> None:
        """From now on choose none of these sentences."""
        self.avoided_captions |= {caption.casefold() for caption in captions}

    def draw(self, pool: Sequence[CaptionedImage], count: int, key: str) -> list[CaptionRow]:
        """`count` rows, their images stored. A larger count begins with the same rows. `key` names the parameter."""
        order = sorted(pool, key=lambda image: image.image_id)
        random.Random(f"{self.seed}/data").shuffle(order)
        rows: list[CaptionRow] = []
        with tqdm(desc=f"storing {key.removeprefix('data.')}", total=count, disable=None) as bar:
            for image in order:
                if len(rows) == count:
                    break
                row = self._row(image)
                if row is not None:
                    rows.append(row)
                    bar.update()
        if len(rows) < count:
            raise UserError(
                f"{key} is {count}, but of the {len(pool)} images in {pool[0].folder} only {len(rows)} can be used "
                f"(no image twice, no caption of evaluation for fine-tuning): lower {key} or add images"
            )
        return rows

    def _row(self, image: CaptionedImage) -> CaptionRow | None:
        """The image's row, or None if the image or its raw prompt is used already."""
        caption = self._raw_prompt(image)
        if image.image_id in self.used_ids or caption.text.casefold() in self.avoided_captions:
            return None
        name = store(image, self.images)
        fingerprint = hashlib.sha256((self.images / name).read_bytes()).digest()
        if fingerprint in self.used_bytes:
            (self.images / name).unlink()
            return None
        self.used_ids.add(image.image_id)
        self.used_bytes.add(fingerprint)
        return CaptionRow(
            caption_id=caption.caption_id,
            image_id=image.image_id,
            caption=caption.text,
            image=f"images/{name}",
            facts=caption.facts,
        )

    def _raw_prompt(self, image: CaptionedImage) -> Caption:
        if self.which_caption == "shortest":
            return min(image.captions, key=lambda caption: len(caption.text))
        if self.which_caption == "first":
            return image.captions[0]
        return random.Random(f"{self.seed}/{image.image_id}").choice(image.captions)


if __name__ == "__main__":
    stages.run(main)
