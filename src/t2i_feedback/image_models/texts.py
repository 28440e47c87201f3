"""A UNet's attention to its text, once for neighbouring rows of a batch that have the same text.

Cross-attention projects a text to keys and values and looks at them from every position of an image. The rows of a
batch share few texts: half of them have the empty prompt, and images come in groups of one prompt. So n neighbours
with one text are as good as one row with n times as many positions: the text is projected once, and one larger product
takes the place of n small ones. The output stays the same but for rounding, and so do an adapter's gradients.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock


class OncePerText:
    """Layers of `unet` that look at the text, as they are now: add adapters and checkpointing first."""

    def __init__(self, unet: Any):
        self._run = 1  # so many neighbours have the same text, from the first row on
        self._checkpointing = unet.is_gradient_checkpointing  # a walk over all modules
        for attention in cross_attentions(unet):
            attention.register_forward_pre_hook(self._as_positions, with_kwargs=True)
            attention.register_forward_hook(self._as_rows)
        if unet.config.addition_embed_type == "text":  # such a UNet adds the pooled text to its timestep
            unet.add_embedding.register_forward_pre_hook(self._one_of_each)
            unet.add_embedding.register_forward_hook(self._for_all)

    @contextmanager
    def sharing(self, rows: torch.Tensor) -> Iterator[None]:
        """Within it neighbours share their text; `rows` [B], on the CPU, is equal where texts are equal.

        All runs of equal rows are cut into pieces of one length, so a single row without its like leaves nothing to
        share. So does gradient checkpointing, whose backward pass runs the layers again after this has ended.
        """
        if not (self._checkpointing and torch.is_grad_enabled()):
            self._run = math.gcd(*rows.unique_consecutive(return_counts=True)[1].tolist())
        try:
            yield
        finally:
            self._run = 1

    def _as_positions(self, attention: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """[B, T, C] as [B / n, n T, C], and every n-th text."""
        if self._run == 1:
            return given, named
        return (
            (given[0].unflatten(0, (-1, self._run)).flatten(1, 2), *given[1:]),
            named | {"encoder_hidden_states": named["encoder_hidden_states"][:: self._run]},
        )

    def _as_rows(self, attention: Any, given: object, output: torch.Tensor) -> torch.Tensor:
        return output if self._run == 1 else output.unflatten(1, (self._run, -1)).flatten(0, 1)

    def _one_of_each(self, layer: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0][:: self._run], *given[1:])

    def _for_all(self, layer: Any, given: object, output: torch.Tensor) -> torch.Tensor:
        return output if self._run == 1 else output.repeat_interleave(self._run, 0)


def cross_attentions(unet: Any) -> list[Any]:
    """Of its transformer blocks, those that look at the text."""
    blocks = (module for module in unet.modules() if isinstance(module, BasicTransformerBlock))
    return [block.attn2 for block in blocks if block.attn2 is not None and block.attn2.is_cross_attention]
