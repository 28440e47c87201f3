"""What runs drew and measured: the present folder, and experiments or commits whose outputs are in DVC's cache."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from t2i_feedback import arms
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import DAMAGE
from t2i_feedback.foundation.rows import CaptionRow, EvaluationRow, ImageRow, Row

HERE = "workspace"  # the run in the present folder, as DVC calls it
RowType = TypeVar("RowType", bound=Row)


@dataclass(frozen=True)
class Column:
    """One arm of one run: caption id -> what it has of it."""

    run: str
    arm: str
    label: str
    images: Mapping[int, ImageRow]
    measured: Mapping[int, EvaluationRow]
    rounds: Mapping[int, tuple[ImageRow, ...]]


@dataclass
class Collection:
    """All that a gallery shows. Images are kept once, by the digest of their pixels."""

    captions: dict[int, str]
    columns: list[Column] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)  # digest -> WebP, lossless
    digests: dict[tuple[int, int], str] = field(default_factory=dict)  # (column, caption id) -> digest
    left_out: list[str] = field(default_factory=list)  # in sentences


class Source:
    """The files of a run, by the paths that the DAG gives them."""

    def __init__(self, name: str):
        self.name = name
        self._files: Any = None  # of a revision; None: the present folder
        if name == HERE:
            return
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc.scm import SCMError

        try:
            self._files = DVCFileSystem(rev=name, config={"core": {"remote": ""}})  # this machine's cache alone
            self._files.read_text(paths.PIPELINE.as_posix())  # it is looked up when the first file is read
        except (DvcException, SCMError, OSError) as error:
            raise UserError(
                f"RUNS: no experiment, branch or commit is called {name!r}; `dvc exp list` names them ({error})"
            ) from None

    def exists(self, path: Path) -> bool:
        """Of a revision: whether a stage of it made this, even if the cache has it no more."""
        if self._files is None:
            return path.exists()
        made = [Path(out.fs_path) for out in self._files.repo.index.outs if out.hash_info]
        return any((Path(self._files.repo.root_dir) / path).is_relative_to(out) for out in made)

    def read(self, path: Path) -> bytes:
        """Raises UserError when the file is not there, or not in the cache."""
        if self._files is None:
            try:
                return path.read_bytes()
            except OSError:
                raise UserError(f"RUNS: {self.name} has no {path}: run `dvc repro`") from None
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexError

        try:
            with self._files.open(path.as_posix(), "rb") as file:
                return file.read()
        except (OSError, DvcException, DataIndexError):
            raise self._missing(path) from None

    def _missing(self, path: Path) -> UserError:
        return UserError(f"RUNS: {self.name} has no {path} in this machine's DVC cache: `dvc pull` it or run it again")

    def rows(self, path: Path, kind: type[RowType]) -> list[RowType]:
        """Raises UserError when the file is not there, or a line is no such row."""
        try:
            lines = self.read(path).decode().split("\n")
            return [kind.model_validate_json(line) for line in lines if line]
        except ValueError as error:
            raise UserError(f"{path} of {self.name} holds no {kind.__name__}: {str(error).splitlines()[0]}") from None


def collect(runs: Iterable[str], at_most: int | None) -> Collection:
    """The captions that all runs have, and what each arm of each run drew for them.

    `at_most` captions are kept; None: 256, or 64 of images above 256 pixels. Raises UserError when a run is not to be
    had, or none has images.
    """
    columns: list[tuple[Source, Column]] = []
    common: dict[int, str] | None = None
    known: set[tuple[int, str]] = set()
    for source in map(Source, dict.fromkeys(runs)):
        captions = {row.caption_id: row.caption for row in source.rows(paths.EVALUATION_CAPTIONS, CaptionRow)}
        known |= captions.items()
        found = [_column(source, arm) for arm in arms.ARMS if source.exists(paths.arm(arm.name) / "images.jsonl")]
        if not found:
            raise UserError(f"RUNS: {source.name} has drawn nothing yet: run `dvc repro`")
        columns += [(source, column) for column in found]
        shared = captions if common is None else {i: t for i, t in common.items() if captions.get(i) == t}
        for column in found:
            shared = {i: text for i, text in shared.items() if i in column.images}
        common = shared
    if not common:
        raise UserError("RUNS: these runs have no caption in common")
    side = _side(*columns[0], next(iter(common)))
    kept = sorted(common)[: at_most or (64 if side > 256 else 256)]
    collection = Collection({i: common[i] for i in kept}, [column for _, column in columns])
    if len(common) < len(known):
        collection.left_out.append(
            f"Left out, as not all arms and runs have them: {len(known) - len(common)} captions."
        )
    if len(kept) < len(common):
        collection.left_out.append(f"{len(common) - len(kept)} of {len(common)} captions are left out (CAPTIONS=).")
    for number, (source, column) in enumerate(columns):
        for caption_id in kept:
            digest, image = _image(source, paths.arm(column.arm) / column.images[caption_id].image)
            collection.images.setdefault(digest, image)
            collection.digests[number, caption_id] = digest
    return collection


def _column(source: Source, arm: arms.Arm) -> Column:
    folder, measured = paths.arm(arm.name), paths.evaluation(arm.name) / "per_image.jsonl"
    rounds: dict[int, tuple[ImageRow, ...]] = {}
    for row in source.rows(folder / "rounds.jsonl", ImageRow):
        rounds[row.caption_id] = (*rounds.get(row.caption_id, ()), row)
    return Column(
        source.name,
        arm.name,
        arm.label,
        {row.caption_id: row for row in source.rows(folder / "images.jsonl", ImageRow)},
        {row.caption_id: row for row in source.rows(measured, EvaluationRow)} if source.exists(measured) else {},
        rounds,
    )


def _side(source: Source, column: Column, caption_id: int) -> int:
    with Image.open(BytesIO(source.read(paths.arm(column.arm) / column.images[caption_id].image))) as image:
        return max(image.size)


def _image(source: Source, path: Path) -> tuple[str, bytes]:
    """The digest of an image's pixels, and the image as lossless WebP."""
    try:
        with Image.open(BytesIO(source.read(path))) as image:
            pixels = image.convert("RGB")
    except DAMAGE as error:
        raise UserError(f"{path} of {source.name} cannot be read: {error}") from None
    written = BytesIO()
    pixels.save(written, format="WEBP", lossless=True, method=2)
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()[:16], written.getvalue()
