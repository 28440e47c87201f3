"""Registries without a list: the modules of a package that define a name, found where the package looks for modules.

A new reward or backend is a new file that defines the name; no other file mentions it. Every module of the package is
imported, so these import what is heavy inside their functions.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def defined(package: ModuleType, name: str) -> Iterator[Any]:
    """What each module of the package calls `name`, in the order of the modules' names."""
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        values = vars(importlib.import_module(f"{package.__name__}.{module}"))
        if name in values:
            yield values[name]
