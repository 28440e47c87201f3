"""What merging a LoRA adapter saves in one layer, by its size: where `image_models.merging.LARGEST` comes from.

    PYTHONPATH=src python benchmarks/merging.py      # a minute, on a machine that does nothing else

Prints milliseconds with the adapter beside the layer and merged into it, and the ratio of the two: below 1, merging
saves time. *training* is a forward and a backward pass, *drawing* a forward pass.
"""

import time
from collections.abc import Callable

import torch
from peft import LoraConfig, inject_adapter_in_model

from t2i_feedback.image_models import merging

ROWS = 32  # 16 images, each with and without its prompt
SIDE = 8  # of an image's latents
REPEATS = 15
RANKS = (4, 8)
LINEAR = (64, 128, 256, 512, 1024)  # channels
CONVOLUTION = (32, 64, 128, 256)


def main() -> None:
    merging.LARGEST = 2**62  # all of them
    print(f"{torch.get_num_threads()} threads; ms beside -> merged")
    for rank in RANKS:
        for channels in LINEAR:
            x = torch.randn(ROWS * SIDE**2, channels, requires_grad=True)
            compare("linear", torch.nn.Linear(channels, channels), x, rank)
        for channels in CONVOLUTION:
            x = torch.randn(ROWS, channels, SIDE, SIDE, requires_grad=True)
            compare("3 x 3", torch.nn.Conv2d(channels, channels, 3, padding=1), x, rank)


def compare(kind: str, layer: torch.nn.Module, x: torch.Tensor, rank: int) -> None:
    unet = torch.nn.ModuleDict({"layer": layer}).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"]), unet)
    merger = merging.Adapter(unet)

    def trained() -> None:
        unet["layer"](x).sum().backward()

    def merged() -> None:
        with merger.merged():
            trained()

    training = milliseconds(trained), milliseconds(merged)
    with torch.no_grad():
        beside = milliseconds(lambda: unet["layer"](x))
        with merger.merged():
            drawing = beside, milliseconds(lambda: unet["layer"](x))
    found = "   ".join(
        f"{name} {beside:6.2f} -> {merged:6.2f} ({merged / beside:.2f})"
        for name, (beside, merged) in (("training", training), ("drawing", drawing))
    )
    print(f"{kind:7s} rank {rank}  {merger.layers[0][1].numel():8d} numbers   {found}", flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    """Of the fastest quarter of the calls, the slowest."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started))
    return sorted(found)[REPEATS // 4]


if __name__ == "__main__":
    main()
