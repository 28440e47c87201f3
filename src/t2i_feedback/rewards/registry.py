"""What fine-tuning maximises: functions from pictures and their prompts to scores, `None` where there is no valid one.

A run's reward is a weighted sum of these. Each is brought to the preference's scale by a fixed figure first, its
`point`, so that a weight means the same for all of them and a resumed run has nothing to remember:

    name         raw value                                  one point is
    preference   the user's score, 1..10                    1
    brightness   mean luma, 0..255                          25.5 grey levels
    contrast     standard deviation of the luma, 0..127.5   12.75 grey levels
    sharpness    1 - blur, 0..1                             0.1
    jpeg_size    kB (1000 bytes) of a JPEG of quality 95    0.1 byte per pixel: 0.41 kB at 64 px, 26 kB at 512 px
    alignment    P(yes) that the picture shows its caption  0.1

A negative weight wants less of a thing: `jpeg_size: -1` is the compressibility of the DDPO paper, `jpeg_size: 1` its
incompressibility (Black et al., "Training diffusion models with reinforcement learning", 2023; ddpo-pytorch saves JPEGs
at quality 95 and counts kilobytes, as here).
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from t2i_feedback.finetuning.section import RewardName
from t2i_feedback.foundation import photometry
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.traits import Trait, directions
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm

Reward = Callable[[list[Image.Image], list[str]], list[float | None]]

JPEG_QUALITY = 95
POINTS: dict[RewardName, float] = {  # of all but jpeg_size
    "preference": 1.0,
    "brightness": 25.5,
    "contrast": 12.75,
    "sharpness": 0.1,
    "alignment": 0.1,
}
VERY_COLOURFUL = 80.0  # of `photometry.colourfulness`
TRAITS: dict[Trait, Callable[[photometry.Pixels], float]] = {  # each 0..1
    "brightness": lambda pixels: photometry.brightness(pixels) / 255,
    "contrast": lambda pixels: photometry.contrast(pixels) / 127.5,
    "saturation": lambda pixels: min(1.0, photometry.colourfulness(pixels) / VERY_COLOURFUL),
    "blur": lambda pixels: 1 - photometry.sharpness(pixels),
}


def preference(mllm: Mllm, text: str, heard: list[roles.Typed] | None = None) -> Reward:
    """The judge's expected score, 1 to 10, of how well a picture fits the preference; the prompt plays no part.

    Answers that are not valid are added to `heard`.
    """

    def reward(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
        outcomes = roles.score_preference(mllm, images, text)
        if heard is not None:
            heard.extend(outcome for outcome in outcomes if outcome.status != "valid")
        return [outcome.value for outcome in outcomes]

    return reward


def oracle(text: str) -> Reward:
    """The preference as photometry sees it, 1 to 10: the mean over the traits that it names, each 0..1, the right way.

    For tests and for trying things out: it costs nothing and is never in doubt. Raises UserError when the preference
    names no trait.
    """
    wanted = directions(text)
    if not wanted:
        raise UserError(
            "finetune.user pixels: the preference names nothing that can be measured in pixels (dark, bright, muted, "
            "vivid, blurred, sharp ...); choose finetune.user mllm or file"
        )

    def score(image: Image.Image) -> float:
        found = {trait: TRAITS[trait](np.asarray(image)) for trait in wanted}
        return 1 + 9 * sum(found[t] if way > 0 else 1 - found[t] for t, way in wanted.items()) / len(wanted)

    return of_each(score)


def alignment(mllm: Mllm, captions: Mapping[str, str], heard: list[roles.Typed] | None = None) -> Reward:
    """P(yes) that a picture shows the caption behind its prompt; `captions` maps prompt -> caption.

    Answers that are not valid are added to `heard`.
    """

    def reward(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
        verdicts = roles.validate(mllm, images, [captions[prompt] for prompt in prompts])
        if heard is not None:
            heard.extend(verdict for verdict in verdicts if verdict.status != "valid")
        return [verdict.p_yes for verdict in verdicts]

    return reward


def of_each(measure: Callable[[Image.Image], float]) -> Reward:
    """A reward that looks at one picture at a time and always knows."""
    return lambda images, prompts: [measure(image) for image in images]


def jpeg_kilobytes(image: Image.Image) -> float:
    """Size of the picture as a JPEG of quality 95, in units of 1000 bytes."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return file.tell() / 1000


PIXELS: dict[RewardName, Reward] = {  # what takes nobody's opinion
    "brightness": of_each(lambda image: photometry.brightness(np.asarray(image))),
    "contrast": of_each(lambda image: photometry.contrast(np.asarray(image))),
    "sharpness": of_each(lambda image: photometry.sharpness(np.asarray(image))),
    "jpeg_size": of_each(jpeg_kilobytes),
}


def total(weights: Mapping[RewardName, float], size: int) -> Callable[[Mapping[str, float]], float]:
    """The function that makes a picture's reward of its raw values by name. `size`: pixels, both sides."""
    points = POINTS | {"jpeg_size": size * size * 0.1 / 1000}
    return lambda raw: sum(weight * raw[name] / points[name] for name, weight in weights.items())
