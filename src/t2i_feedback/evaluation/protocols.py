"""Published protocols: what `evaluate.protocol` demands of params.yaml, so that numbers may stand beside others."""

_INCEPTION: dict[str, object] = {"evaluate.extractor": "inception-v3-compat", "evaluate.weights": None}
_COCO: dict[str, object] = {"data.source": "coco", "data.caption": "random"}
PROTOCOLS: dict[str, dict[str, object]] = {  # evaluate.protocol -> the keys that it demands, and their values
    "own": {},
    # Our reading of the paper, which states neither n nor resolution nor resizer.
    "paper": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2014",
        "data.evaluation_captions": 5000,
        "data.reference_images": 5000,
        "model.size": 512,
        "evaluate.size": 512,
        "evaluate.resizer": "crop_lanczos",
        "evaluate.splits": 10,
    },
    # BK-SDM's (Kim et al., "BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion", 2023), whose table
    # and model cards give Stable Diffusion 1.4 FID 13.05 and IS 36.76. By its code (Nota-NetsPresso/BK-SDM:
    # src/generate.py, src/get_stat_mscoco_val2014.py, src/utils/misc.py, scripts/eval_scores.sh) images and all
    # 40,504 images of val2014 are resized to 256 x 256 by Pillow's default, unequal sides and all.
    "coco30k-256": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2014",
        "data.evaluation_captions": 30000,
        "data.reference_images": 40504,
        "model.size": 512,
        "evaluate.size": 256,
        "evaluate.resizer": "squash_bicubic",
        "evaluate.splits": 10,
    },
    # One caption for each of the 5,000 images of val2017, at full size. Who uses them states no resizer: ours.
    "coco5k": _INCEPTION
    | _COCO
    | {
        "data.val_split": "val2017",
        "data.evaluation_captions": 5000,
        "data.reference_images": 5000,
        "model.size": 512,
        "evaluate.size": 512,
        "evaluate.resizer": "crop_lanczos",
        "evaluate.splits": 10,
    },
}
