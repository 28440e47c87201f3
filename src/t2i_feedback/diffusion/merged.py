"""A LoRA adapter merged into the layers that it changes, for as long as it stays the same, and trained nevertheless.

A layer under an adapter computes W x + s B A x: beside its own product two small ones, a scaling and an addition, row
by row, forwards and backwards. With W' = W + s B A, made once, it computes W' x. The backward pass then finds the
gradient of W', summed over all rows, and the chain rule makes those of A and B: dA = s B^T dW', dB = s dW' A^T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

LARGEST = 2**18  # numbers of a weight: the gradient of a larger one costs more than the small products
ADAPTER = "default"


class Merged:
    """The adapter of a UNet, in its float32 layers of up to LARGEST numbers: other precisions would round it away."""

    def __init__(self, unet: Any):
        self.unet = unet
        self.layers = [layer for layer in unet.modules() if isinstance(layer, LoraLayer) and _suits(layer.base_layer)]
        self.own = [layer.base_layer.weight for layer in self.layers]  # without the adapter

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it the adapter is merged and must not be changed; afterwards it has the gradient of what was done."""
        together = [own + layer.get_delta_weight(ADAPTER) for own, layer in zip(self.own, self.layers, strict=True)]
        leaves = [torch.nn.Parameter(weight.detach(), requires_grad=weight.requires_grad) for weight in together]
        self._put(leaves, [ADAPTER])
        try:
            yield
        finally:
            self._put(self.own, [])
        learnt = [(weight, leaf.grad) for weight, leaf in zip(together, leaves, strict=True) if leaf.grad is not None]
        if learnt:
            torch.autograd.backward([weight for weight, _ in learnt], [gradient for _, gradient in learnt])

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within it the UNet is the one without an adapter, whether that is merged or not."""
        present = [layer.base_layer.weight for layer in self.layers]
        merged = [*self.layers[0].merged_adapters] if self.layers else []
        self._put(self.own, [])
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()
            self._put(present, merged)

    def _put(self, weights: list[torch.nn.Parameter], merged: list[str]) -> None:
        """`merged` names the adapters that PEFT is told are in these weights, so that it leaves them out."""
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.base_layer.weight = weight
            layer.merged_adapters[:] = merged


def _suits(layer: torch.nn.Module) -> bool:
    weight = layer.weight
    return isinstance(weight, torch.Tensor) and weight.dtype == torch.float32 and weight.numel() <= LARGEST
