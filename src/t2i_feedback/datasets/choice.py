"""Which images and captions of a data set an experiment uses, and for what."""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from t2i_feedback.datasets import coco, folder
from t2i_feedback.datasets.captioned import Caption, CaptionedImage, Problems, store
from t2i_feedback.datasets.postcards.writing import write_dataset
from t2i_feedback.datasets.section import Data
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow

if TYPE_CHECKING:
    from t2i_feedback.datasets.coco_download import CocoDownload

Provide = Callable[[Sequence[CaptionedImage]], None]  # makes sure that the images' files are there


def all_there(images: Sequence[CaptionedImage]) -> None:
    """Nothing has to be fetched."""


def read_pools(
    wanted: Data, seed: int, work: Path, download: "CocoDownload | None"
) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """The images to draw fine-tuning captions from, and those to draw evaluation captions and references from."""
    if wanted.source == "folder":
        pool = folder.read(wanted.path)
        return pool, pool
    if wanted.source == "coco":
        splits = (wanted.train_split, wanted.val_split)
        if download:
            for split in splits:
                download.captions(split)
        train, val = (coco.read(download.folder if download else wanted.path, split) for split in splits)
        return (train if wanted.train_split == wanted.val_split else _renumber(train, val)), val
    counts = {"train": wanted.finetune_captions, "val": wanted.reference_images}
    root = work / "postcards"
    for _ in tqdm(write_dataset(root, counts, seed), "drawing postcards", sum(counts.values()), disable=None):
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


class Choice:
    """Draws images by a seeded shuffle, gives each its raw prompt, and uses no image (by its bytes) twice."""

    def __init__(self, which_caption: str, seed: int, images: Path, provide: Provide, skip_unreadable: bool = False):
        self.which_caption, self.seed, self.images, self.provide = which_caption, seed, images, provide
        self.skip_unreadable = skip_unreadable
        self.left_out: list[str] = []  # why each image was left out that cannot be read
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
        candidates = (image for image in order if not self._is_used(image))
        rows: list[CaptionRow] = []
        problems, before = Problems(), set(self.used_bytes)
        twins: list[CaptionedImage] = []
        with tqdm(desc=f"storing {key.removeprefix('data.')}", total=count, disable=None) as bar:
            while missing := list(
                islice(candidates, count - len(rows) - (0 if self.skip_unreadable else len(problems.found)))
            ):
                self.provide(missing)
                for image in missing:
                    with problems.gathered():
                        row = self._row(image, before, twins)
                        if row is not None:
                            rows.append(row)
                            bar.update()
        if self.skip_unreadable:
            self.left_out += problems.found
        else:
            problems.raise_any("; data.skip_unreadable: true leaves such images out")
        if len(rows) < count and twins:
            rows += self._again(twins[: count - len(rows)])
        if len(rows) < count:
            unread = f", {len(problems.found)} cannot be read" if problems.found else ""
            raise UserError(
                f"{key} is {count}, but of the {len(pool)} images in {pool[0].folder} only {len(rows)} can be used "
                f"(no image twice, no caption of evaluation for fine-tuning{unread}): lower {key} or add images"
            )
        return rows

    def _again(self, twins: Sequence[CaptionedImage]) -> list[CaptionRow]:
        """Rows of images whose bytes another row of the same draw has: taken where there are no others, so that a whole
        split can be had that holds an image twice."""
        print(f"data: {len(twins)} images are the same as others of their set, and are there twice")
        rows = [self._stored(image)[0] for image in twins]
        self.used_ids |= {row.image_id for row in rows}
        return rows

    def _is_used(self, image: CaptionedImage) -> bool:
        return image.image_id in self.used_ids or self._raw_prompt(image).text.casefold() in self.avoided_captions

    def _row(self, image: CaptionedImage, before: set[bytes], twins: list[CaptionedImage]) -> CaptionRow | None:
        """The image's row, or None if the same image is used already; by this draw alone, it joins `twins`."""
        row, fingerprint = self._stored(image)
        if fingerprint in self.used_bytes:
            (self.images / Path(row.image).name).unlink()
            if fingerprint not in before:
                twins.append(image)
            return None
        self.used_ids.add(image.image_id)
        self.used_bytes.add(fingerprint)
        return row

    def _stored(self, image: CaptionedImage) -> tuple[CaptionRow, bytes]:
        """Its row, and what its bytes are known by."""
        caption, name = self._raw_prompt(image), store(image, self.images)
        row = CaptionRow(
            caption_id=caption.caption_id,
            image_id=image.image_id,
            caption=caption.text,
            image=f"images/{name}",
            facts=caption.facts,
        )
        return row, hashlib.sha256((self.images / name).read_bytes()).digest()

    def _raw_prompt(self, image: CaptionedImage) -> Caption:
        if self.which_caption == "shortest":
            return min(image.captions, key=lambda caption: len(caption.text))
        if self.which_caption == "first":
            return image.captions[0]
        return random.Random(f"{self.seed}/{image.image_id}").choice(image.captions)
