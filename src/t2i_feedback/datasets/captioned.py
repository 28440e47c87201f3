"""What every reader returns, an image with its captions, and the checks that text and files from outside must pass."""

import shutil
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.foundation.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's other readers are not for files from outside
SHOWN = 5  # problems that are told in full
_TURNS = {  # EXIF orientation -> how the image becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Caption:
    """One sentence about an image. `facts` is what it states, where the data set says so."""

    caption_id: int
    text: str
    facts: dict | None = None


@dataclass(frozen=True)
class CaptionedImage:
    """An image file, not yet opened, and at least one caption. `file_name` is relative to `folder`."""

    image_id: int
    folder: Path
    file_name: str
    captions: tuple[Caption, ...]

    @property
    def path(self) -> Path:
        """Where the file is. A name may be composed otherwise on the disk (an é as one character or two)."""
        named = self.folder / self.file_name
        return named if named.exists() else _composed_otherwise(self.folder, self.file_name) or named


class Problems:
    """What is wrong with a data set: all of it is gathered, and told in one message with its number."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """A UserError of the block is one more problem, and not the end."""
        try:
            yield
        except UserError as error:
            self.found.append(str(error))

    def raise_any(self, advice: str = "") -> None:
        """Raises UserError when there is one, with the first few."""
        if len(self.found) > SHOWN:
            more = len(self.found) - SHOWN
            raise UserError(f"{len(self.found)} problems: {'; '.join(self.found[:SHOWN])}; and {more} more{advice}")
        if self.found:
            raise UserError(f"{'; '.join(self.found)}{advice}")


def _composed_otherwise(folder: Path, name: str) -> Path | None:
    """The one file whose name is the same letters, composed otherwise; None when there is none, or several."""
    place = folder
    for part in PurePosixPath(name).parts:
        found = _listed(place).get(unicodedata.normalize("NFC", part), [])
        if len(found) != 1:
            return None
        place = place / found[0]
    return place


@lru_cache(maxsize=4096)
def _listed(folder: Path) -> dict[str, list[str]]:
    """Of a folder's entries: the composed name -> the names on the disk."""
    names: dict[str, list[str]] = {}
    for entry in folder.iterdir() if folder.is_dir() else ():
        names.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
    return names


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte-order mark. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def check_caption(text: object, where: str) -> str:
    """The caption with white space tidied and nothing else changed. Raises UserError if it is no sentence."""
    if not isinstance(text, str):
        raise UserError(f"{where}: the caption is {text!r}, not text")
    if "\0" in text:
        raise UserError(f"{where}: the caption has a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where}: the caption is not Unicode text (half a surrogate pair)")
    tidy = " ".join(text.split())
    if not tidy:
        raise UserError(f"{where}: the caption is empty")
    return tidy


def check_facts(facts: object, where: str) -> dict | None:
    """What the caption states, in the form of `postcards.Scene`. Raises UserError for any other form."""
    if facts is None:
        return None
    try:
        return Scene.from_json(facts).to_json()  # type: ignore[arg-type]
    except (KeyError, TypeError):
        raise UserError(
            f"{where}: facts must be an object with `background` and `things`, not {facts!r:.200}"
        ) from None


def check_file_name(name: object, where: str) -> str:
    """A name below the image folder. Raises UserError for anything that points elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{where}: the image file's name is {name!r}")
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where}: the image file {name!r} is outside the image folder")
    return name


def store(image: CaptionedImage, folder: Path) -> str:
    """Put the image into `folder`, named by its id, and return the file's name.

    PNG and JPEG files that already are upright RGB are copied byte for byte, all others become RGB PNG. Raises
    UserError when the file is missing, broken, too large or outside the data set.
    """
    upright, as_it_is = _open(image)
    if as_it_is:
        name = f"{image.image_id:012d}.{'png' if as_it_is == 'PNG' else 'jpg'}"
        shutil.copyfile(image.path, folder / name)
    else:
        name = f"{image.image_id:012d}.png"
        upright.info = {key: value for key, value in upright.info.items() if key == "icc_profile"}  # nobody needs EXIF
        upright.save(folder / name)
    return name


def check_readable(file: Path) -> None:
    """Raises UserError, a sentence without its subject ("is empty"), unless the whole file decodes as an image."""
    _decode(file)


def _open(image: CaptionedImage) -> tuple[Image.Image, str | None]:
    """The decoded upright RGB image; and the file's format if its bytes can be used as they are."""
    try:
        resolved = image.path.resolve()  # links are followed: DVC's cache and the hub's keep files elsewhere
        if not resolved.exists():
            raise UserError("is a link to a file that is missing" if image.path.is_symlink() else _missing(image))
        if not resolved.is_file():
            raise UserError("is not a file")
        return _decode(resolved)
    except (UserError, OSError) as error:
        raise UserError(f"{image.path} (image {image.image_id}) {error}") from None


def _missing(image: CaptionedImage) -> str:
    """What is said of a file that is not there: where only capitals differ, the one that is meant."""
    folder, name = image.path.parent, image.path.name.casefold()
    alike = [one for names in _listed(folder).values() for one in names if one.casefold() == name]
    return f"is missing; there is {alike[0]}" if alike else "is missing"


def _decode(file: Path) -> tuple[Image.Image, str | None]:
    """As `_open`; the errors' subject, the file, is for the caller to name."""
    try:
        if file.stat().st_size == 0:
            raise UserError("is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                opened.load()
                turn = _TURNS.get(_orientation(opened))
                plain = opened.mode == "RGB" and turn is None and "transparency" not in opened.info
                as_it_is = opened.format if plain and opened.format in ("PNG", "JPEG") else None
                image = to_rgb(opened)
                return image if turn is None else image.transpose(turn), as_it_is
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"is too large: images may have {limit:.0f} million pixels") from None
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, EOFError, RuntimeError, struct.error) as error:
        raise UserError(f"cannot be read: {error}") from None


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 = upright; other tags of it may be anything, and are of no interest."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a block that is cut short
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged block of EXIF makes Pillow raise whatever its bytes lead to
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; what is transparent becomes white. Raises UserError for numbers that are no brightnesses.

    Of grey with more than 8 bits, whole numbers run from 0 to 65535, numbers with a fraction from 0 to 1, to 255 or to
    65535, whichever holds them all. Pillow's own conversion would clip both.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_of_numbers(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_of_numbers(image: Image.Image) -> Image.Image:
    import numpy as np

    numbers = np.asarray(image, dtype=np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite(numbers).all() or low < 0 or high > 65535:
        raise UserError(f"holds numbers from {low:g} to {high:g}, which are no brightnesses")
    if image.mode != "F":
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    white = next(white for white in (1.0, 255.0, 65535.0) if high <= white)
    return Image.fromarray(np.round(numbers * (255 / white)).astype(np.uint8)).convert("RGB")


def first_repeated(values: Iterable[int]) -> int | None:
    """The first value that was there before, or None."""
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
