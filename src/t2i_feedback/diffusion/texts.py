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


@contextmanager
def computed_once(unet: torch.nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Within it, layers that see nothing but the text run on one row of each text; `rows` [B] numbers the rows' texts.

    Changes nothing under gradient checkpointing, whose backward pass runs the layers again after this has ended.
    """
    hooks = []
    if not (torch.is_grad_enabled() and unet.is_gradient_checkpointing):
        texts, inverse = rows.unique(return_inverse=True)
        first = torch.stack([(rows == text).nonzero()[0, 0] for text in texts])
        for layer in text_layers(unet):
            hooks.append(layer.register_forward_pre_hook(lambda layer, given: (given[0][first], *given[1:])))
            hooks.append(layer.register_forward_hook(lambda layer, given, output: output[inverse]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def text_layers(unet: Any) -> list[torch.nn.Module]:
    """Keys and values of the cross-attentions, and the pooling of the text where a UNet adds that to its timestep."""
    attentions = [module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention]
    layers: list[torch.nn.Module] = [layer for found in attentions for layer in (found.to_k, found.to_v)]
    return [*layers, unet.add_embedding] if unet.config.addition_embed_type == "text" else layers
