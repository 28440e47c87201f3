"""Image files: written in one step, read as the very pixels that are saved."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2i_feedback.foundation import files


def save_png(image: Image.Image, path: Path, about: dict[str, str]) -> None:
    """With `about` as the file's text. An interrupted run leaves no half image under this name."""
    text = PngInfo()
    for name, value in about.items():
        text.add_itxt(name, value)
    with files.whole(path) as partial:
        image.save(partial, format="PNG", pnginfo=text)


def about_png(path: Path) -> dict[str, str]:
    """The text that `save_png` put into the file; empty if there is no such file."""
    try:
        with Image.open(path) as image:
            return {str(name): str(value) for name, value in image.info.items()}
    except FileNotFoundError:
        return {}


def open_rgb(path: Path) -> Image.Image:
    """The pixels as RGB, with the file closed."""
    with Image.open(path) as image:
        return image.convert("RGB")
