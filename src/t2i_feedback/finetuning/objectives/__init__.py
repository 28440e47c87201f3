"""What an update minimises. Each file here is an objective, which `finetune.objective` chooses by the file's name.

It has one function, `loss`, which is an `Objective`: a loss of the log-probabilities of transitions. A new one of that
kind is a new file and nothing else; one of another kind (of preferences, say) needs another `finetuning.update` too.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Objective(Protocol):
    def __call__(
        self,
        log_prob: "torch.Tensor",  # [B] of the transitions under the present policy, with a graph
        old_log_prob: "torch.Tensor",  # [B] under the policy that drew them
        advantage: "torch.Tensor",  # [B] of the images that they belong to
        clip_range: float,  # finetune.clip_range
    ) -> "torch.Tensor":
        """The mean loss of B transitions, a scalar that is minimised."""


def names() -> list[str]:
    """Of the objectives that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> Objective:
    """The objective of that name, one of `names()`."""
    return import_module(f"{__name__}.{name}").loss
