"""Image files: written in one step, read as the very pixels that are saved."""

import struct
import sys
import zlib
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i_feedback.foundation import files
from t2i_feedback.foundation.errors import UserError, first_line

DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)  # what Pillow raises of broken files


def save_png(image: Image.Image, path: Path, about: dict[str, str]) -> None:
    """With `about` as the file's text. An interrupted run leaves no half image under this name."""
    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value)
    with files.whole(path) as partial:
        image.save(partial, format="PNG", pnginfo=text)


def about_png(path: Path) -> dict[str, str]:
    """The text that `save_png` put into the file; empty if there is no such file, or not the whole of it: what a crash
    cut short is as good as not there."""
    try:
        with Image.open(path) as image:
            image.load()
            return {str(name): str(value) for name, value in image.info.items()}
    except FileNotFoundError:
        return {}
    except DAMAGE:
        print(f"{path} is damaged, and is made again", file=sys.stderr)
        return {}


def open_rgb(path: Path, side: int | None = None) -> Image.Image:
    """The pixels as RGB, with the file closed; with `side`, a larger image at most so many pixels wide and high.

    Raises UserError that names the file when it cannot be read.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
            if side is not None and max(pixels.size) > side:
                pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
            return pixels
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        why = first_line(error)
        raise UserError(f"{path} cannot be read ({why}): delete it, and the stage that makes it runs again") from None
