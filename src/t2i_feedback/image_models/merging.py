"""A LoRA adapter merged into the layers that it changes, for as long as it stays the same, and trained nevertheless.

A layer under an adapter computes W x + s B A x: beside its own product two small ones, a scaling and an addition, row
by row, forwards and backwards. With W' = W + s B A, made once, it computes W' x. The backward pass then finds the
gradient of W' (as much work again as W' x), and the chain rule makes those of A and B: dA = s B^T dW', dB = s dW' A^T.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

LARGEST = 2**15  # numbers of a weight that is merged for training; benchmarks/merging.py
NAME = "default"  # what PEFT calls an adapter that was given no name


class Adapter:
    """The adapter of a UNet, which is merged into its float32 layers: half precision would round it away.

    Where gradients are wanted, only into those of up to LARGEST numbers: a large weight's gradient costs more than the
    small products.
    """

    def __init__(self, unet: Any):
        self.unet = unet
        found: list[Any] = [layer for layer in unet.modules() if isinstance(layer, LoraLayer)]
        weights: list[torch.nn.Parameter] = [layer.base_layer.weight for layer in found]  # without the adapter
        self.layers = [pair for pair in zip(found, weights, strict=True) if pair[1].dtype == torch.float32]

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within it the adapter is merged and must not be changed; afterwards it has the gradient of what was done."""
        training = torch.is_grad_enabled()
        chosen = [(layer, own) for layer, own in self.layers if own.numel() <= LARGEST or not training]
        sums = [own + layer.get_delta_weight(NAME) for layer, own in chosen]
        leaves = [torch.nn.Parameter(weight.detach(), requires_grad=training) for weight in sums]
        for (layer, _), leaf in zip(chosen, leaves, strict=True):
            _put(layer, leaf, [NAME])
        try:
            yield
        finally:
            for layer, own in chosen:
                _put(layer, own, [])
        learnt = [(weight, leaf.grad) for weight, leaf in zip(sums, leaves, strict=True) if leaf.grad is not None]
        if learnt:
            torch.autograd.backward([weight for weight, _ in learnt], [gradient for _, gradient in learnt])

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within it the UNet is the one without an adapter, whether that is merged or not."""
        present = [(layer, layer.base_layer.weight, [*layer.merged_adapters]) for layer, _ in self.layers]
        for layer, own in self.layers:
            _put(layer, own, [])
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()
            for layer, weight, merged in present:
                _put(layer, weight, merged)


def _put(layer: Any, weight: torch.nn.Parameter, merged: list[str]) -> None:
    """`merged` names the adapters that PEFT is told are in this weight, so that it leaves them out."""
    layer.base_layer.weight = weight
    layer.merged_adapters[:] = merged
