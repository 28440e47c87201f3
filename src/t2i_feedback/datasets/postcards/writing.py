"""The drawn world as an ordinary COCO-captions data set.

An annotation carries, beside its caption, the `facts` that the caption states; only measurement reads those.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from t2i_feedback.datasets.postcards.captions import caption, is_for_tuning
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import SIDE, sample_scene
from t2i_feedback.foundation.errors import UserError

MISSES = 1000  # scenes in a row without a new caption, after which there are none worth waiting for
CAPTIONS_PER_IMAGE = ("terse", "terse", "medium", "detailed", "detailed")


def write_dataset(root: Path, counts: dict[str, int], seed: int) -> Iterator[str]:
    """Write `annotations/captions_{split}.json` and `{split}/*.png` in COCO's layout; yield each file's name when done.

    `counts` maps a split (`train`, `val`) to its number of images. No scene and no caption is in two splits, no
    terse caption is used twice within one, and none is for tuning. Raises UserError when the world has no captions
    left.
    """
    taken: dict[str, str] = {}  # caption -> split
    first_id = 0
    for split in sorted(counts, reverse=True):  # val first: the smaller share of scenes has the first choice of words
        folder = root / split
        folder.mkdir(parents=True)
        images: list[dict] = []
        annotations: list[dict] = []
        rng = random.Random(f"{seed}/{split}")
        misses = 0
        while len(images) < counts[split]:
            scene = sample_scene(rng, split)
            texts = [caption(scene, rng, level) for level in CAPTIONS_PER_IMAGE]
            unusable = any(taken.get(text, split) != split or is_for_tuning(text) for text, _ in texts)
            if unusable or texts[0][0] in taken:
                misses += 1
                if misses == MISSES:
                    raise UserError(f"postcards has no new captions after {len(images)} {split} images: ask for fewer")
                continue
            misses = 0
            taken |= {text: split for text, _ in texts}
            image_id = first_id + len(images) + 1
            name = f"{image_id:012d}.png"
            render(scene, rng).save(folder / name)
            images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
            for text, facts in texts:
                annotation = {"id": image_id * 10 + len(annotations) % 5, "image_id": image_id, "caption": text}
                annotations.append(annotation | {"facts": facts.to_json()})
            yield name
        first_id += counts[split]
        target = root / "annotations" / f"captions_{split}.json"
        target.parent.mkdir(exist_ok=True)
        info = {"description": "postcards", "version": "1", "contributor": "t2i-feedback"}
        target.write_text(json.dumps({"info": info, "images": images, "annotations": annotations}))
