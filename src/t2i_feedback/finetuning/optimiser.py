"""The optimiser of the adapter."""

from collections.abc import Iterable

import torch

from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation.errors import UserError


def make(config: Finetune, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """`finetune.optimiser` for the parameters. Raises UserError if it needs what is not installed.

    adamw8bit keeps the two moments of every tensor of more than 4,096 numbers in a byte each (Dettmers et al., *8-bit
    Optimizers via Block-wise Quantization*, 2022); smaller ones stay in float32, and at rank 4 most of a LoRA's are.
    """
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("finetune.optimiser: adamw8bit needs `pip install bitsandbytes`; adamw needs nothing") from None
    return AdamW8bit(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
