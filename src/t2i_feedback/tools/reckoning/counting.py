"""How much memory tensors take that have sizes and no numbers: torch's fake tensors, counted while they live."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def since(self) -> int:
        """Bytes alive; the peak is counted anew from here."""
        self.peak = self.now
        return self.now


def materialise(module: torch.nn.Module) -> torch.nn.Module:
    """The module with tensors of the present (fake) mode in the place of those on the meta device.

    Layers that share a tensor share it afterwards.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}

    def of(tensor: torch.Tensor) -> torch.Tensor:
        if tensor not in made:
            made[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[tensor]

    return module._apply(of)


@contextmanager
def counting() -> Iterator[Memory]:
    with FakeTensorMode(allow_non_fake_inputs=True), Memory() as memory:
        yield memory


def size(module: torch.nn.Module) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
