"""How models are reached: one file per backend, whose `ENTRY` is the class of its entries in the catalogue `mllms`.

An entry knows all that differs between backends: what an answer depends on, how the model is loaded, who asks, and what
an answer costs. Everything else is in the same words for all of them.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from t2i_feedback.foundation.params import Count, Section

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Backend
    from t2i_feedback.mllm.ledger import Ledger


@dataclass(frozen=True)
class Access:
    """The way to a model."""

    identity: str  # JSON of all that its answers depend on besides the request; a part of the ledger's keys
    load: "Callable[[], Backend]"  # called when the first question is really asked


class Entry(Section):
    """What every entry of the catalogue has. A backend names itself (`backend: Literal["name"]`) and adds its keys."""

    in_process: ClassVar[bool]  # true: every process of a launch loads it and asks its share; false: the first one asks

    backend: str
    model: Annotated[str, Field(min_length=1)]
    templates: Literal["general", "postcards"] = "general"
    images: bool = True  # false: a model of text alone, which can enhance and nothing else
    reading: Literal["auto", "probability", "samples", "text"] = "auto"  # of yes/no and scores; auto = the best it has
    max_new_tokens: Count = 96
    max_image_side: Count | None = None  # pixels; larger images are shown to the model at this size. None = as they are

    @abstractmethod
    def access(self, name: str, ledger: "Ledger") -> Access:
        """The way to the model that the catalogue calls `name`. Raises UserError when it is nowhere to be had."""

    def asked_about(self, identity: str) -> str:
        """Under what its abilities are noted: they are found out without images where it is shown none."""
        return identity if self.images else f"{identity} text alone"

    @property
    @abstractmethod
    def concurrent(self) -> int:
        """How many requests are under way at a time."""

    @property
    def times_asked(self) -> int:
        """How often a question is asked where answers are read by samples; 1 = `auto` never reads them so."""
        return 1

    def cost_usd(self, tokens_in: float, tokens_out: float) -> float:
        """What an answer costs, in dollars."""
        return 0.0

    @property
    def account(self) -> str:
        """Under what its calls and costs are counted, and what was found out about it is noted."""
        return self.model

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; None when none is needed."""
        return None

    @property
    def hub_model(self) -> str | None:
        """The hub's name of the checkpoint that is loaded; None when nothing is loaded from the hub's cache."""
        return None

    @property
    def precision(self) -> str | None:
        """The number format of the weights that are loaded here; None when they are elsewhere."""
        return None

    @property
    def wants_accelerator(self) -> bool:
        """Whether it is loaded here in a format that processors are slow at."""
        return False
