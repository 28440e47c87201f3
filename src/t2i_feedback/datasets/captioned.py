"""What every reader returns, an image with its captions, and the checks that text and files from outside must pass."""

import shutil
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps, UnidentifiedImageError

from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.foundation.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's other readers are not for files from outside


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
        return self.folder / self.file_name


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
        upright.save(folder / name)
    return name


def check_readable(file: Path) -> None:
    """Raises UserError, a sentence without its subject ("is empty"), unless the whole file decodes as an image."""
    _decode(file)


def _open(image: CaptionedImage) -> tuple[Image.Image, str | None]:
    """The decoded upright RGB image; and the file's format if its bytes can be used as they are."""
    try:
        resolved = image.path.resolve()
        if not resolved.is_relative_to(image.folder.resolve()):
            raise UserError("is a link that leaves the image folder")
        if not resolved.exists():
            raise UserError("is missing")
        if not resolved.is_file():
            raise UserError("is not a file")
        return _decode(resolved)
    except (UserError, OSError) as error:
        raise UserError(f"{image.path} (image {image.image_id}) {error}") from None


def _decode(file: Path) -> tuple[Image.Image, str | None]:
    """As `_open`; the errors' subject, the file, is for the caller to name."""
    try:
        if file.stat().st_size == 0:
            raise UserError("is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                turned = opened.getexif().get(0x0112, 1) != 1  # the EXIF orientation tag
                plain = opened.mode == "RGB" and not turned and "transparency" not in opened.info
                as_it_is = opened.format if plain and opened.format in ("PNG", "JPEG") else None
                return to_rgb(upright), as_it_is
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"is too large: images may have {limit:.0f} million pixels") from None
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, EOFError, RuntimeError, struct.error) as error:
        raise UserError(f"cannot be read: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; what is transparent becomes white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it to white
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def first_repeated(values: Iterable[int]) -> int | None:
    """The first value that was there before, or None."""
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
