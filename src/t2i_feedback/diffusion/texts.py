"""What a UNet computes of its text alone, computed once per text instead of once per row of a batch.

Every cross-attention projects all tokens of the text to keys and values, for every row, although the rows of a batch
share few texts: half of them have the empty prompt, and pictures come in groups of one prompt. The output stays the
same but for rounding, and the gradients of an adapter on these layers add up over the rows as they should.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention


class OncePerText:
    """Layers of `unet` that see nothing but the text, as they are now: add adapters and checkpointing first."""

    def __init__(self, unet: Any):
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None
        self._checkpointing = unet.is_gradient_checkpointing  # a walk over all modules
        for layer in text_layers(unet):
            layer.register_forward_pre_hook(self._one_row_of_each)
            layer.register_forward_hook(self._all_rows)

    @contextmanager
    def sharing(self, rows: torch.Tensor) -> Iterator[None]:
        """Within it the layers run on one row of each text; `rows` [B] numbers the rows' texts.

        Changes nothing under gradient checkpointing, whose backward pass runs the layers again after this has ended.
        """
        if self._checkpointing and torch.is_grad_enabled():
            yield
            return
        texts, inverse = rows.unique(return_inverse=True)
        first = torch.stack([(rows == text).nonzero()[0, 0] for text in texts])
        self._rows = first, inverse
        try:
            yield
        finally:
            self._rows = None

    def _one_row_of_each(self, layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return given if self._rows is None else (given[0][self._rows[0]], *given[1:])

    def _all_rows(self, layer: torch.nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        return output if self._rows is None else output[self._rows[1]]


def text_layers(unet: Any) -> list[torch.nn.Module]:
    """Keys and values of the cross-attentions, and the pooling of the text where a UNet adds that to its timestep."""
    attentions = [module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention]
    layers: list[torch.nn.Module] = [layer for found in attentions for layer in (found.to_k, found.to_v)]
    return [*layers, unet.add_embedding] if unet.config.addition_embed_type == "text" else layers
