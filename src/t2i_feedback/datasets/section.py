"""The section `data` of params.yaml: which captions and real images."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_feedback.foundation.params import FREE, Count, Section

OFFICIAL_SPLITS = ("train2014", "val2014", "train2017", "val2017")  # of MS-COCO, those with captions


class Data(Section):
    source: Literal["postcards", "coco", "folder"]
    path: Path
    fetch: Literal["none", "images", "zip"]
    mirror: Annotated[str, Field(pattern=r"^https?://[^@?#\s]+$")]  # no password, no query: names are appended
    downloads: Path
    checksums: Literal["published", "first"]
    connections: Annotated[int, Field(ge=1, le=64), FREE]
    train_split: str
    val_split: str
    caption: Literal["shortest", "first", "random"]
    finetune_captions: Count
    evaluation_captions: Annotated[int, Field(ge=4)]
    reference_images: Annotated[int, Field(ge=4)]
    skip_unreadable: bool = False

    @model_validator(mode="after")
    def _reference_is_large_enough(self) -> "Data":
        if self.reference_images < self.evaluation_captions:
            raise ValueError("reference_images must be at least evaluation_captions: FID compares with all of them")
        return self

    @model_validator(mode="after")
    def _what_is_fetched_is_official(self) -> "Data":
        if self.fetch == "none":
            return self
        if self.source != "coco":
            raise ValueError(f"fetch: {self.fetch} goes with source: coco; {self.source} needs fetch: none")
        for key, split in (("train_split", self.train_split), ("val_split", self.val_split)):
            if split not in OFFICIAL_SPLITS:
                raise ValueError(f"{key}: {split} cannot be fetched; COCO has {', '.join(OFFICIAL_SPLITS)}")
        return self
