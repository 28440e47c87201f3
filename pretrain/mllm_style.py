"""The look of a picture: three measurable traits (dark, muted, blurred) and restyling that moves all three.

The simulated user of the paper prefers a look, so the judge must see every look in training, and its truth must be
measured on the picture itself. Pictures are float tensors [N, 3, H, W] in 0..1.
"""

import math

import torch
import torch.nn.functional as F

TRAITS = ("dark", "muted", "blurred")
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
# Where a trait begins (level 0) and where it is complete (level 1), on the scales of `trait_levels`.
BRIGHT_LUMA, DARK_LUMA = 0.80, 0.08
VIVID_CHROMA, DULL_CHROMA = 0.34, 0.03
STRONG_CONTRAST, WEAK_CONTRAST = 0.22, 0.05
SHARP_RATIO, BLURRED_RATIO = 0.50, 0.07  # on a logarithmic scale
BLUR_REACH = 8  # pixels to either side of the blur kernel


def luma(images: torch.Tensor) -> torch.Tensor:
    """Rec. 601 luma [N, H, W] in 0..1."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1)


def edge_ratio(grey: torch.Tensor) -> torch.Tensor:
    """Energy of differences over one pixel against that over four, [N]: high for sharp edges, blind to contrast."""
    near = grey.diff(dim=1).square().mean((1, 2)) + grey.diff(dim=2).square().mean((1, 2))
    far = (grey[:, 4:] - grey[:, :-4]).square().mean((1, 2)) + (grey[:, :, 4:] - grey[:, :, :-4]).square().mean((1, 2))
    return (near + 1e-6) / (far + 4e-6)


def trait_levels(images: torch.Tensor) -> torch.Tensor:
    """How dark, muted and blurred pictures are: [N, 3] in 0..1, from mean luma, chroma and contrast, and edges."""
    grey = luma(images)
    chroma = (images.amax(1) - images.amin(1)).mean((1, 2))
    contrast = grey.std((1, 2))
    dark = (BRIGHT_LUMA - grey.mean((1, 2))) / (BRIGHT_LUMA - DARK_LUMA)
    dull = ((VIVID_CHROMA - chroma) / (VIVID_CHROMA - DULL_CHROMA)).clamp(0, 1)
    flat = ((STRONG_CONTRAST - contrast) / (STRONG_CONTRAST - WEAK_CONTRAST)).clamp(0, 1)
    blurred = (SHARP_RATIO / edge_ratio(grey)).log() / math.log(SHARP_RATIO / BLURRED_RATIO)
    return torch.stack([dark, 0.6 * dull + 0.4 * flat, blurred], dim=1).clamp(0, 1)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with one sigma (pixels, [N]) for each picture."""
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.clamp(min=0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
    count, channels, height, width = images.shape
    flat = images.reshape(1, count * channels, height, width)
    pad = BLUR_REACH
    flat = F.conv2d(F.pad(flat, (pad, pad, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=count * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, pad, pad), mode="replicate"), kernel[:, :, :, None], groups=count * channels)
    return flat.reshape(images.shape)


def restyle(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every picture with its own light, saturation, contrast, blur and (one in five) a little grain."""

    def draw(low: float, high: float, share: float = 1.0, rest: float = 1.0) -> torch.Tensor:
        values = torch.rand(len(images), generator=generator) * (high - low) + low
        chosen = torch.rand(len(images), generator=generator) < share
        return torch.where(chosen, values, torch.tensor(rest))[:, None, None, None]

    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * draw(0.45, 1.25, share=0.7) + mean
    grey = luma(images)[:, None]
    images = grey + (images - grey) * draw(0.1, 1.5, share=0.8)
    images = (images * draw(0.35, 1.3)).clamp(0, 1)
    images = blur(images, draw(0.0, 2.2, share=0.7, rest=0.0).flatten())
    grain = torch.randn(images.shape, generator=generator) * draw(0.0, 0.04, share=0.2, rest=0.0)
    return (images + grain).clamp(0, 1)
