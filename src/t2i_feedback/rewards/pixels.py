"""Rewards that are computed from the pixels: they cost nothing and are never in doubt.

JPEGs are saved at quality 95 and counted in kilobytes, as in ddpo-pytorch.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.traits import Trait, directions
from t2i_feedback.rewards.base import Reward, RewardKind

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i_feedback.foundation import photometry

JPEG_QUALITY = 95
VERY_COLOURFUL = 80.0  # of `photometry.colourfulness`


def of_each(measure: "Callable[[Image], float]") -> Reward:
    """A reward that looks at one image at a time and always knows."""
    return lambda images, prompts: [measure(image) for image in images]


def measured(name: str) -> Reward:
    """The function of that name in foundation/photometry.py, image by image."""

    def measure(image: "Image") -> float:
        import numpy as np

        from t2i_feedback.foundation import photometry

        return getattr(photometry, name)(np.asarray(image))

    return of_each(measure)


def jpeg_kilobytes(image: "Image") -> float:
    """Size of the image as a JPEG of quality 95, in units of 1000 bytes."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.tell() / 1000


REWARDS = (
    RewardKind(
        name="brightness",
        raw="mean of the luma, 0..255",
        point=25.5,
        unit="grey levels",
        giver="pixels",
        make=lambda _: measured("brightness"),
    ),
    RewardKind(
        name="contrast",
        raw="standard deviation of the luma, 0..127.5",
        point=12.75,
        unit="grey levels",
        giver="pixels",
        make=lambda _: measured("contrast"),
    ),
    RewardKind(
        name="sharpness",
        raw="1 - blur effect, 0..1",
        point=0.1,
        unit="of the range",
        giver="pixels",
        make=lambda _: measured("sharpness"),
    ),
    RewardKind(
        name="jpeg_size",
        raw="size of a JPEG of quality 95, above 0",
        point=lambda pixels: pixels * 0.1 / 1000,  # 0.1 byte per pixel: 0.41 kB at 64 pixels, 26 kB at 512
        unit="kB (1000 bytes)",
        giver="pixels",
        make=lambda _: of_each(jpeg_kilobytes),
    ),
)


def photometric(preference: str) -> Reward:
    """The preference as photometry sees it, 1 to 10: the mean over the traits that it names, each 0..1, the right way.

    For tests and for trying things out. Raises UserError when the preference names no trait.
    """
    wanted = directions(preference)
    if not wanted:
        raise UserError(
            "finetune.user pixels: the preference names nothing that can be measured in pixels (dark, bright, muted, "
            "vivid, blurred, sharp ...); choose finetune.user mllm or file"
        )

    def score(image: "Image") -> float:
        import numpy as np

        found = {trait: share_of(trait, np.asarray(image)) for trait in wanted}
        return 1 + 9 * sum(found[t] if way > 0 else 1 - found[t] for t, way in wanted.items()) / len(wanted)

    return of_each(score)


def share_of(trait: Trait, pixels: "photometry.Pixels") -> float:
    """How much of a trait an image has, 0..1."""
    from t2i_feedback.foundation import photometry

    shares: dict[Trait, Callable[[photometry.Pixels], float]] = {
        "brightness": lambda pixels: photometry.brightness(pixels) / 255,
        "contrast": lambda pixels: photometry.contrast(pixels) / 127.5,
        "saturation": lambda pixels: min(1.0, photometry.colourfulness(pixels) / VERY_COLOURFUL),
        "blur": lambda pixels: 1 - photometry.sharpness(pixels),
    }
    return shares[trait](pixels)
