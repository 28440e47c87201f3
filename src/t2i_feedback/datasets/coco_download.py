"""MS-COCO's official files, brought into a folder of COCO's layout.

The captions come from `annotations/annotations_trainval<year>.zip`; images either one by one from `<split>/` or out of
`zips/<split>.zip`, and in both cases only those that are asked for are unpacked. What is there already is used.
`downloads.jsonl` in the folder holds what came first, by size and SHA-256, and later files and runs are held to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from t2i_feedback.datasets import download, zipped
from t2i_feedback.datasets.captioned import CaptionedImage, check_readable
from t2i_feedback.datasets.download import Pin, Server
from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import Row, read_rows, write_rows

CAPTIONS_BYTES = 2**29  # at most, of a captions file; the largest has about 90 MB
IMAGE_BYTES = 2**26  # at most, of an image; COCO's have below 1 MB
PUBLISHER = "TensorFlow Datasets publishes"

# Source of the sizes (bytes) and SHA-256: github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/coco.txt.
# Nobody publishes any of the single images.
PUBLISHED = {
    name: Pin(size, sha256, PUBLISHER)
    for name, size, sha256 in (
        (
            "annotations/annotations_trainval2014.zip",
            252872794,
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
        ),
        (
            "annotations/annotations_trainval2017.zip",
            252907541,
            "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        ),
        ("zips/train2014.zip", 13510573713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
        ("zips/val2014.zip", 6645013297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
        ("zips/train2017.zip", 19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
        ("zips/val2017.zip", 815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    )
}


class Download(Row):
    """A file as it first came. `name` is relative to the folder."""

    name: str
    bytes: int
    sha256: str


class CocoDownload:
    """The folder, filled on demand by one process at a time. `published` names archives as the server does."""

    def __init__(
        self,
        folder: Path,
        server: Server,
        images_from: Literal["images", "zip"],
        published: Mapping[str, Pin] = PUBLISHED,
        connections: int = 1,
    ):
        self.folder = folder
        self._server, self._images_from = server, images_from
        self._published, self._connections = published, connections
        self._record = folder / "downloads.jsonl"
        self._first: dict[str, Download] = {}

    def captions(self, split: str) -> None:
        """Have `annotations/captions_<split>.json`, and a folder for the split's images."""
        name = f"annotations/captions_{split}.json"
        file = self.folder / name
        with self._held():
            if file.exists():
                self._hold(name)
            else:
                year = split[-4:]
                with zipped.opened(self._archive("annotations", f"annotations_trainval{year}.zip")) as archive:
                    zipped.extract(archive, name, file, CAPTIONS_BYTES)
                self._hold(name)
            if not (self.folder / "images" / split).is_dir():
                (self.folder / split).mkdir(exist_ok=True)

    def images(self, images: Sequence[CaptionedImage]) -> None:
        """Have the images' files; images are of one split."""
        if not images:
            return
        with self._held():
            missing = []
            for image in images:
                _check_inside(image)
                if image.path.exists():
                    self._hold(self._name(image))
                else:
                    missing.append(image)
            if self._images_from == "images":
                self._fetch(missing)
            elif missing:
                self._unpack(missing)

    def _fetch(self, images: Sequence[CaptionedImage]) -> None:
        """One by one, `connections` at a time. The first that fails stops the others; what came is kept."""
        pool = ThreadPoolExecutor(self._connections)
        tasks = {pool.submit(self._fetch_one, image): image for image in images}
        problem: UserError | None = None
        try:
            with tqdm(desc="fetching images", unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
                pending, arrived = set(tasks), 0
                while pending:
                    done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                    for task in done:
                        if task.cancelled():
                            continue
                        if isinstance(error := task.exception(), UserError):
                            problem = problem or error  # the first; those after it say that they were stopped
                            self._server.stop()
                            pending = {other for other in pending if not other.cancel()}
                            continue
                        bar.update(task.result())
                        self._hold(self._name(tasks[task]))
                        arrived += 1
                    bar.set_postfix_str(f"{arrived} of {len(images)}", refresh=False)
        except BaseException:
            self._server.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if problem:
            raise problem

    def _fetch_one(self, image: CaptionedImage) -> int:
        """The bytes that came."""

        def check(file: Path) -> None:
            try:
                check_readable(file)
            except UserError as error:
                raise UserError(f"image {image.image_id} {error}") from None

        name = f"{image.folder.name}/{image.file_name}"
        self._server.get(name, image.path, self._pin(self._name(image)), IMAGE_BYTES, check)
        return image.path.stat().st_size

    def _unpack(self, images: Sequence[CaptionedImage]) -> None:
        split = images[0].folder.name
        with zipped.opened(self._archive("zips", f"{split}.zip")) as archive:
            for image in tqdm(images, f"unpacking {split}.zip", unit=" images", disable=None):
                zipped.extract(archive, f"{split}/{image.file_name}", image.path, IMAGE_BYTES)
                self._hold(self._name(image))

    def _archive(self, place: str, name: str) -> Path:
        """The archive's file, which lies in the folder itself."""
        file = self.folder / name
        published = self._published.get(f"{place}/{name}")
        if not file.exists():
            with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
                self._server.get(f"{place}/{name}", file, self._pin(name) or published, check=_check_archive, bar=bar)
        elif name in self._first and file.stat().st_size == self._first[name].bytes:
            return file  # compared when it came; another look at 20 GB at every run tells nothing new
        elif published and name not in self._first:  # put there by hand
            download.check_pin(str(file), file, published)
        self._hold(name)
        return file

    def _hold(self, name: str) -> None:
        """The file must be the one that came first, or is now the first."""
        file, pin = self.folder / name, self._pin(name)
        if pin:
            download.check_pin(str(file), file, pin)
        else:
            self._first[name] = Download(name=name, bytes=file.stat().st_size, sha256=files.digest(file))

    def _pin(self, name: str) -> Pin | None:
        first = self._first.get(name)
        origin = f"came first ({self._record} holds it: delete its line there if the new one is right)"
        return Pin(first.bytes, first.sha256, origin) if first else None

    def _name(self, image: CaptionedImage) -> str:
        return str(image.path.relative_to(self.folder))

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The folder, for this process alone; the record is read before and written after, come what may."""
        with files.locked(self.folder / ".lock", f"waiting for another process that fills {self.folder}"):
            rows = read_rows(self._record, Download) if self._record.exists() else []
            self._first = {row.name: row for row in rows}
            try:
                yield
            finally:
                if list(self._first.values()) != rows:
                    write_rows(self._record, self._first.values())


def _check_archive(file: Path) -> None:
    with zipped.opened(file):
        pass


def _check_inside(image: CaptionedImage) -> None:
    """Nothing is written through a link that leaves the image folder."""
    if not image.path.parent.resolve().is_relative_to(image.folder.resolve()):
        raise UserError(f"{image.path} (image {image.image_id}) is outside the image folder")
