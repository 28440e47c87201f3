"""Image files, decoded once: ahead of their use by threads while a network computes, and kept while there is room."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

from PIL import Image, ImageOps

KEPT_BYTES = 4 * 2**30  # of decoded pixels: 5,461 images of 512 x 512
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # results that wait for whoever asks
RESIZERS = {  # name -> what it does to an image that is not of the wanted size already
    "crop_lanczos": "centre crop to a square, then Pillow's Lanczos",
    "crop_bicubic": "centre crop to a square, then Pillow's bicubic",
    "squash_bicubic": "the whole image to a square by Pillow's bicubic",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageFiles:
    """Opens image files, and keeps what it opened as long as `room` bytes suffice: a kept one is not decoded again.

    Beyond that an image is decoded once per pass, which costs less than keeping several models loaded.
    """

    def __init__(self, decode: Callable[[Path], Image.Image], room: int = KEPT_BYTES) -> None:
        self._decode, self._room = decode, room
        self._kept: dict[Path, Image.Image] = {}
        self._lock = Lock()

    def open(self, file: Path) -> Image.Image:
        """The image as RGB. It may be handed out again: do not change it."""
        if file in self._kept:
            return self._kept[file]
        image = self._decode(file)
        size = 3 * image.width * image.height
        with self._lock:
            if size <= self._room:
                self._room -= size
                self._kept[file] = image
        return image

    def open_all(self, files: Iterable[Path]) -> list[Image.Image]:
        return list(ahead(files, self.open))


def ahead(items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """`work` of every item, in order, done by threads before it is asked for. Raises what `work` raises."""
    waiting: deque[Future[Result]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            waiting.extend(threads.submit(work, item) for item in islice(rest, AHEAD))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(threads.submit(work, item) for item in islice(rest, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def square(image: Image.Image, size: int, resizer: str) -> Image.Image:
    """An RGB image at size x size; one of that size is not touched."""
    if image.size == (size, size):
        return image
    if resizer == "squash_bicubic":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    filters = {"crop_lanczos": Image.Resampling.LANCZOS, "crop_bicubic": Image.Resampling.BICUBIC}
    return ImageOps.fit(image, (size, size), filters[resizer])
