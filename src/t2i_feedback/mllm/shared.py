"""A model whose questions are divided among the processes of a launch.

A checkpoint is loaded in every process, and each asks its share. A server is asked by the first process alone: it
answers many requests at once, and its budget is kept in one ledger. Either way every process gets every reply.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from t2i_feedback import mllm
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.rows import Reading
from t2i_feedback.mllm.backends import Entry
from t2i_feedback.mllm.base import Mllm, Reply, Request


class Shared:
    """A Mllm. Every process must put the same questions to it; a question that is put twice is asked once."""

    def __init__(self, model: Mllm, askers: int):
        self.own = model  # for questions that this process alone has
        self._askers = askers  # how many of the processes, from the first on, ask

    @property
    def templates(self) -> str:
        return self.own.templates

    @property
    def reading(self) -> Reading:
        return self.own.reading

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        return self._divided(requests, lambda own: self.own.generate(own, max_new_tokens, temperature))

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        return self._divided(requests, lambda own: self.own.choose(own, candidates))

    def _divided(self, requests: Sequence[Request], ask: Callable[[list[Request]], list[Reply]]) -> list[Reply]:
        if distributed.world_size() == 1:
            return ask(list(requests))
        askers = _askers(requests, self._askers)
        own = [request for request, asker in zip(requests, askers, strict=True) if asker == distributed.rank()]
        answered = json.dumps([asdict(reply) for reply in ask(own)] if own else []).encode()
        replies = [(Reply(**fields) for fields in json.loads(one)) for one in distributed.all_gather(answered)]
        return [next(replies[asker]) for asker in askers]


def _askers(requests: Sequence[Request], count: int) -> list[int]:
    """The rank of the process that asks each request: they take turns, and equal requests go to the same one."""
    turn: dict[tuple[str, int, str], int] = {}
    keys = [(request.text, request.sample, _pixels(request)) for request in requests]
    return [turn.setdefault(key, len(turn) % count) for key in keys]


def _pixels(request: Request) -> str:
    if request.image is None:
        return ""
    return hashlib.sha256(f"{request.image.mode} {request.image.size} ".encode() + request.image.tobytes()).hexdigest()


@contextmanager
def connect(
    name: str,
    entry: Entry,
    ledger: Path,
    images: bool = True,
    max_invalid: tuple[str, float] = ("max_invalid_fraction", 1.0),
) -> Iterator[Shared]:
    """`mllm.connect` in every process. What the first has found out about the model, the others read in the ledger."""
    if not distributed.is_main():
        distributed.barrier()
    with mllm.connect(name, entry, ledger, images, max_invalid) as model:
        if distributed.is_main():
            distributed.barrier()
        yield Shared(model, distributed.world_size() if entry.in_process else 1)
