"""What every multimodal language model looks like to the rest: requests in, typed replies out.

Only a `valid` reply carries an answer. The other statuses say why there is none, and no number is made of them.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from PIL import Image

from t2i_feedback.foundation.rows import Reading, Status

Value = TypeVar("Value")

MIN_MASS = 0.05  # an answer whose candidates together have less probability is not one of the candidates
SHOWN = 120  # characters of an answer that is not valid
NOT_FINITE = "the model's probabilities are not finite"


@dataclass(frozen=True)
class Request:
    """One question. `sample` tells repeated askings apart, and seeds what is drawn at a temperature.

    Role and template are for the ledger's accounts only.
    """

    text: str
    image: Image.Image | None = None
    sample: int = 0
    role: str = ""
    template: str = ""  # digest of the template that worded it


@dataclass(frozen=True)
class Decoding:
    """How to answer: freely with at most `max_new_tokens`, or, with candidates, by the probability of each."""

    max_new_tokens: int
    candidates: tuple[str, ...] = ()
    temperature: float = 0.0  # 0 = greedy
    schema: str = ""  # JSON schema of a free answer, for backends that can hold a model to one


@dataclass(frozen=True)
class Abilities:
    """What a backend can do, found out once."""

    images: bool
    logprobs: bool  # gives the probabilities of answers
    schema: bool  # holds a model to a JSON schema
    dialect: str = ""  # what of a request it was found not to take that may change an answer, in words
    varied: bool = True  # asked again at a temperature, it may answer otherwise
    thinks: bool = False  # writes its thinking first: every answer needs all the room that the entry gives
    protocol: str = ""  # how it is spoken to, in the backend's own form; "" = not noted


class Relearn(Exception):
    """What a backend can do is not what was noted: its abilities are to be found out again before it is asked more."""


@dataclass(frozen=True)
class Reply:
    """An answer. `probabilities` sum to 1 over the candidates; `mass` is what they had before that."""

    status: Status
    text: str
    probabilities: dict[str, float] | None = None
    mass: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0  # those of thinking too
    tokens_thinking: int = 0
    seconds: float = 0.0
    reading: Reading = "text"


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What a role made of a reply. `value` is None unless the status is valid; `raw` is the reply's own text."""

    status: Status
    value: Value | None
    raw: str
    reading: Reading = "text"


class Typed(Protocol):
    """Whatever has a status and the answer it was read from: a Verdict or an Outcome."""

    @property
    def status(self) -> Status: ...

    @property
    def raw(self) -> str: ...

    @property
    def reading(self) -> Reading: ...


class Backend(Protocol):
    """Where answers come from: a checkpoint in this process or a server."""

    def abilities(self) -> Abilities:
        """What it can do. Raises UserError when that cannot be found out: no key, nobody there, no such model."""
        ...

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """Yield groups of (position in `requests`, reply) as they come, in any order; every request is answered.

        Raises Relearn when its abilities have changed: no answer that was given since is among the groups.
        """
        ...

    def close(self) -> None: ...


class Mllm(Protocol):
    """A model that roles talk to. Replies stand in the order of the requests."""

    @property
    def templates(self) -> str:
        """Which folder of templates words its requests."""
        ...

    @property
    def reading(self) -> Reading:
        """How its choices are read."""
        ...

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        """Free text: the likeliest (temperature 0), or drawn with each request's `sample` as its seed."""
        ...

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        """The probability of each candidate as the answer, or the share of samples that give it, or a text."""
        ...


def chosen(mass: dict[str, float], text: str, remark: str = "") -> Reply:
    """The reply that candidates' probability masses make: unparseable when they are hardly among the answers.

    Where one is NaN or infinite there are none, and the text says so, with the remark behind it.
    """
    total = sum(mass.values())
    if not math.isfinite(total):
        return Reply("unparseable", NOT_FINITE + remark, tokens_out=1, reading="probability")
    if total < MIN_MASS:
        return Reply("unparseable", text, None, total, tokens_out=1, reading="probability")
    shares = {name: value / total for name, value in mass.items()}
    return Reply("valid", text, shares, total, tokens_out=1, reading="probability")


def most_frequent(masked: Sequence[Typed]) -> str:
    """Of answers that are not valid: of which kinds they are, and what was said most often. Empty if there are none."""
    if not masked:
        return ""
    kinds = ", ".join(f"{count} {status}" for status, count in Counter(o.status for o in masked).most_common())
    raws = Counter(" ".join(outcome.raw.split())[:SHOWN] for outcome in masked).most_common(3)
    return f" ({kinds}). Most frequent: " + "; ".join(f"{raw!r} ({count}x)" for raw, count in raws)
