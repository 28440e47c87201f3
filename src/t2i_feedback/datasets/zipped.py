"""Single files out of zip archives from outside: names that lead elsewhere, links and bombs are refused."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from t2i_feedback.foundation.errors import UserError

CHUNK = 2**20
UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)


@contextmanager
def opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, all of whose members have decent names. Raises UserError for a file that is no such archive."""
    try:
        archive = zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise UserError(f"{file} is not a zip archive ({error})") from None
    with archive:
        _check_members(file, archive)
        yield archive


def extract(archive: zipfile.ZipFile, member: str, target: Path, limit: int) -> None:
    """Write one member to `target`, whole or not at all. Raises UserError for one of more than `limit` bytes."""
    where = f"{archive.filename}: {member}"
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise UserError(f"{where} is not in the archive") from None
    if info.file_size > limit:
        raise UserError(f"{where} would have {info.file_size} bytes; more than {limit} are not unpacked")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        with archive.open(info) as source, partial.open("wb") as out:
            while chunk := source.read(CHUNK):  # never more than file_size, and the last read compares the CRC
                out.write(chunk)
    except UNREADABLE as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{where} cannot be unpacked ({error}): delete the archive, and it is got again") from None
    partial.replace(target)


def _check_members(file: Path, archive: zipfile.ZipFile) -> None:
    names: set[str] = set()
    for info in archive.infolist():
        where = f"{file}: member {info.filename!r}"
        parts = PurePosixPath(info.orig_filename.replace("\\", "/"))  # as it is written: `filename` ends at a NUL
        if parts.is_absolute() or ".." in parts.parts or "\0" in info.orig_filename:
            raise UserError(f"{where}: the file is outside of where it is unpacked")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{where} is a link")
        if info.filename in names:
            raise UserError(f"{where} is there twice")
        names.add(info.filename)
