"""Multimodal language models: where they run (local, endpoint), what they said (ledger), what they do (roles)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2i_feedback.mllm.base import Backend, Mllm
from t2i_feedback.mllm.section import EndpointEntry, LocalEntry


@contextmanager
def open(name: str, entry: LocalEntry | EndpointEntry, ledger_path: Path, images: bool = True) -> Iterator[Mllm]:
    """The model that the catalogue calls `name`, behind the ledger. A run whose answers are all there loads nothing.

    Raises UserError when a local checkpoint is nowhere to be had, and, the first time that it is opened, when a server
    is not there or the model cannot do what it will be asked: look at `images`, or give the probabilities that the
    entry's `reading` demands.
    """
    from t2i_feedback.mllm.ledger import Ledger
    from t2i_feedback.mllm.ledgered import Ledgered

    ledger = Ledger(ledger_path)

    if isinstance(entry, LocalEntry):
        from t2i_feedback.mllm import checkpoint

        revision = checkpoint.revision(name, entry)
        facts = ["local", revision, entry.dtype, entry.quantisation]

        def load() -> Backend:
            from t2i_feedback.mllm.local import LocalMllm

            return LocalMllm(name, entry, revision)

    else:
        facts = ["endpoint", entry.base_url, entry.model]

        def load() -> Backend:
            from t2i_feedback.mllm.budget import Budget
            from t2i_feedback.mllm.endpoint import EndpointMllm

            return EndpointMllm(name, entry, Budget(name, entry, ledger))

    model = Ledgered(entry, json.dumps(facts), load, ledger, name)
    try:
        model.ready(images)
        yield model
    finally:
        model.close()
