"""How an image looks, as numbers: brightness, contrast, sharpness and colourfulness of uint8 RGB arrays [H, W, 3].

scikit-image is loaded at the first call, so importing this module costs nothing.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

CELLS = 4  # of an embedding's thumbnail, each way
EDGE = 1e-3  # of the luma's 0..1: weaker edges are none
Pixels = NDArray[np.uint8]  # [H, W, 3]


def measure(image: "Image.Image | Pixels") -> dict[str, float]:
    """Brightness, contrast and sharpness of an RGB image (an array or Pillow's)."""
    array = np.asarray(image)
    return {"brightness": brightness(array), "contrast": contrast(array), "sharpness": sharpness(array)}


def means(images: Iterable["Image.Image | Pixels"]) -> dict[str, float]:
    """The same, averaged over at least one image."""
    measured = [measure(image) for image in images]
    return {name: float(np.mean([numbers[name] for numbers in measured])) for name in measured[0]}


def brightness(image: Pixels) -> float:
    """Mean of the luma, 0..255."""
    return float(luma(image).mean())


def contrast(image: Pixels) -> float:
    """Standard deviation of the luma, 0..127.5."""
    return float(luma(image).std())


def sharpness(image: Pixels) -> float:
    """1 - blur of the luma, 0 (blurred or flat) .. 1: how much an image loses when it is blurred once more.

    Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric" (2007).
    Its filter is 11 pixels wide whatever the image's size: compare images of one resolution only.
    """
    from skimage.measure import blur_effect

    return 1 - float(blur_effect(luma(image) / 255))


def colourfulness(image: Pixels) -> float:
    """Spread and strength of the opponent colours, from 0 (grey); above about 80 is very colourful.

    Hasler & Suesstrunk, "Measuring colourfulness in natural images" (2003), M3.
    """
    _check(image)
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    strength = np.hypot(red_green.mean(), yellow_blue.mean())
    return float(spread + 0.3 * strength)


def embeddings(images: "Sequence[Image.Image]") -> NDArray[np.float64]:
    """What images look like in a few numbers [N, 68]: luma and chroma of a 4 x 4 thumbnail, its luma's spread in each
    cell, and how strong edges are at three scales and colours altogether. All in units of about 0..1.
    """
    return np.stack([_embedding(np.asarray(image)) for image in images])


def _embedding(image: Pixels) -> NDArray[np.float64]:
    from skimage.color import rgb2yuv

    _check(image)
    yuv = rgb2yuv(image)
    rows = [block for row in np.array_split(yuv, CELLS, 0) for block in np.array_split(row, CELLS, 1)]
    means = [block.mean((0, 1)) for block in rows]
    spreads = [block[..., 0].std() for block in rows]
    edges = [
        np.log(EDGE + np.abs(np.diff(coarse, axis=0)).mean() + np.abs(np.diff(coarse, axis=1)).mean())
        for coarse in (_coarser(yuv[..., 0], factor) for factor in (1, 2, 4))
    ]
    return np.concatenate([*means, spreads, edges, [colourfulness(image) / 100]])


def _coarser(luma: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Means of blocks of `factor` pixels a side."""
    height, width = (side - side % factor for side in luma.shape)
    blocks = luma[:height, :width].reshape(height // factor, factor, width // factor, factor)
    return blocks.mean((1, 3))


def luma(image: Pixels) -> NDArray[np.float64]:
    """Rec. 601 luma [H, W], 0..255. (scikit-image's rgb2gray has the weights of Rec. 709.)"""
    from skimage.color import rgb2yuv

    _check(image)
    return rgb2yuv(image)[..., 0] * 255


def _check(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"not a uint8 RGB image [H, W, 3]: {image.dtype} {list(image.shape)}")
