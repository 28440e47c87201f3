"""Picture files: written in one step, read as the very pixels that are saved."""

from pathlib import Path

from PIL import Image


def save_png(image: Image.Image, path: Path) -> None:
    """An interrupted run leaves no half picture under this name."""
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG")
    partial.replace(path)


def open_rgb(path: Path) -> Image.Image:
    """The pixels as RGB, with the file closed."""
    with Image.open(path) as image:
        return image.convert("RGB")
