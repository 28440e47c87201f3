"""The protocol card: everything that an arm's numbers were made by. Arms that were measured alike have equal cards.

Each section of params.yaml says its own lines (`card` of its class); whoever measures puts them together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i_feedback.evaluation.section import Evaluate

MEASURES = {  # what the numbers are
    "image_format": "png",
    "rounds_std": "over captions",
    "brightness": "mean of the 0-255 Rec. 601 luma, averaged over images",
    "contrast": "standard deviation of the same luma, averaged over images",
    "sharpness": "1 - blur_effect of the same luma, averaged over images",
    "diversity": "mean cosine distance of features over all pairs of images",
}


def reference_card(folder: Path) -> dict[str, Any]:
    """What the real images' features were made by."""
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def roles_asked(evaluate: Evaluate, judge: str, mllm: str, mllm_sees: bool) -> dict[str, str]:
    """Role -> the model that plays it. A stage-1 model of text alone has no role here: it enhances and no more."""
    asked = {"judge": judge, "held_out": evaluate.judge}
    if mllm_sees:
        asked["validator"] = mllm
    if evaluate.questions:
        asked["questions"] = mllm
    if evaluate.vqa_score:
        asked["vqa"] = evaluate.vqa_mllm
    return asked


def card(reference: Mapping[str, Any], n: int, seed: int, *parts: Mapping[str, object]) -> dict[str, object]:
    """The card of n images. `parts` are the lines of the sections and of the models that were asked."""
    whole: dict[str, object] = {**reference, "n": n, "seed": seed, **MEASURES}
    for part in parts:
        whole |= part
    return whole
