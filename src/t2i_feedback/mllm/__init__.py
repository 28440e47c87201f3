"""Multimodal language models: where they run (backends), what they said (ledger), what they do (roles)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i_feedback.mllm.backends import Entry
    from t2i_feedback.mllm.base import Mllm


@contextmanager
def connect(
    name: str,
    entry: "Entry",
    ledger_path: Path,
    images: bool = True,
    max_invalid: tuple[str, float] = ("max_invalid_fraction", 1.0),
) -> "Iterator[Mllm]":
    """The model that the catalogue calls `name`, behind the ledger. A run whose answers are all there loads nothing.

    `max_invalid`: the key that bounds the share of answers that are not valid, and its value. A model that is far above
    it after a few dozen answers is not asked the rest.

    Raises UserError when a local checkpoint is nowhere to be had, and, the first time that it is asked for, when a
    server is not there or the model cannot do what it will be asked: look at `images`, or give the probabilities that
    the entry's `reading` demands.
    """
    from t2i_feedback.mllm.ledger import Ledger
    from t2i_feedback.mllm.ledgered import Ledgered

    ledger = Ledger(ledger_path)
    access = entry.access(name, ledger)
    model = Ledgered(entry, access.identity, access.load, ledger, name, max_invalid)
    try:
        model.ready(images)
        yield model
    finally:
        model.close()
