"""CLIP (Radford et al. 2021) as transformers has it: features of images, and how well an image fits a text.

A checkpoint is a folder or a hub id. Only safetensors are read: nothing is unpickled.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from t2i_feedback.foundation import files, hub
from t2i_feedback.foundation.errors import UserError

PREFIX = "A photo depicts "  # of every text, as in Hessel et al.
WEIGHT = 2.5  # which stretches cosines of CLIP to about 0..1, as in Hessel et al.
BATCH = 32

Loaded = TypeVar("Loaded")


def load(name: str, key: str) -> CLIPModel:
    """The model, in float32 and for evaluation. Raises UserError, naming the parameter `key`, if it cannot be had."""
    model = _had(name, key, lambda: CLIPModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32))
    return model.requires_grad_(False).eval()


def version(model: CLIPModel, name: str) -> str:
    """Which weights they are: the hub's commit, or of a folder the beginning of its files' hash."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return f"{name} at {commit[:12]}"
    return f"{name}, sha256 {files.digest_of(sorted(Path(name).glob('*.safetensors')))[:12]}"


def prepared(model: CLIPModel, pixels: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] -> what the model sees, at its own size: antialiased bicubic interpolation, normalised."""
    vision: Any = model.config.vision_config
    side: int = vision.image_size
    resized = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (resized - mean) / std


def image_features(model: CLIPModel, seen: Tensor) -> Tensor:
    """What `prepared` gives -> projected features [B, D]."""
    return model.get_image_features(pixel_values=seen).pooler_output


def scores(model: CLIPModel, name: str, key: str, images: Iterable[Image.Image], texts: Sequence[str]) -> list[float]:
    """CLIPScore of each image and its text: 2.5 max(cos, 0), of the text after "A photo depicts ".

    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (2021). A text beyond the
    model's window is cut off. Images are cropped to their centre square.
    """
    tokenizer = _had(name, key, lambda: CLIPTokenizer.from_pretrained(name))
    text: Any = model.config.text_config
    window: int = text.max_position_embeddings
    found: list[float] = []
    rest = iter(images)
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            batch = [PREFIX + words for words in texts[start : start + BATCH]]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=window, return_tensors="pt")
            words = model.get_text_features(**tokens.to(model.device)).pooler_output
            seen = torch.cat([prepared(model, _pixels(next(rest), model.device)) for _ in batch])
            looks = image_features(model, seen)
            found += (WEIGHT * F.cosine_similarity(looks, words).clamp(min=0)).tolist()
    return found


def _pixels(image: Image.Image, device: torch.device) -> Tensor:
    """uint8 [1, 3, S, S]: the centre square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    array = np.array(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(array).permute(2, 0, 1)[None].to(device)


def _had(name: str, key: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except (OSError, ValueError, RuntimeError) as error:
        why = hub.why(name, "main", error, "CLIP checkpoint with safetensors")
        raise UserError(f"{key}: {name} {why}") from None
