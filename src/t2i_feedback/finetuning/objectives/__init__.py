"""What an update minimises. Each file here is an objective, which `finetune.objective` chooses by the file's name.

It names its class, a `finetuning.objective.Objective`, `OBJECTIVE`. A new objective is a new file and nothing else.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i_feedback.finetuning.objective import Objective


def names() -> list[str]:
    """Of the objectives that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> "type[Objective]":
    """The objective of that name, one of `names()`."""
    return import_module(f"{__name__}.{name}").OBJECTIVE
