"""What a server takes of a request. OpenAI's protocol is spoken in dialects: parameters have other names, are refused,
or have smaller bounds. A dialect is found out once for an entry, parameter by parameter, from what the server refuses.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

TOP_LOGPROBS = 20  # as many as the protocol allows
FEWER = (5, 1)  # tried when that is too many and the server does not say how many it gives
NEW_NAME, OLD_NAME = "max_completion_tokens", "max_tokens"
NO_LIMIT = "no token limit"
NEW_NAME_HOSTS = ("api.openai.com",)  # where the old name is refused by most models; Azure's are of customers
Schema = Literal["bounds", "plain", "none"]
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
REFUSALS = (400, 403, 404, 415, 422, 500, 501)  # of a parameter; servers differ in which


@dataclass(frozen=True)
class Dialect:
    """What an entry's server takes, as far as it is known."""

    limit: str = OLD_NAME  # what the token limit is called; "" = none may be sent
    renamed: bool = False  # the other name was refused: when this one is too, none may be sent
    temperature: bool = True
    seed: bool = True
    logprobs: int = TOP_LOGPROBS  # alternatives per token; 0 = none may be asked for
    schema: Schema = "bounds"  # with bounds of numbers, without, or none
    effort: str = ""  # reasoning_effort that was found to be of use: `none` where it brings logprobs back
    thinks: bool = False  # it thinks before it answers: its answers need room
    degenerate: bool = False  # the token that it wrote has all the probability
    steady: bool = False  # it gives the same answer at any temperature: asking again says nothing new

    def words(self) -> list[str]:
        """What is not as the protocol has it."""
        said = {
            f"the limit is called {self.limit}": self.limit == NEW_NAME,
            NO_LIMIT: not self.limit,
            "no temperature": not self.temperature,
            "no seed": not self.seed,
            "no logprobs": not self.logprobs,
            f"at most {self.logprobs} logprobs": 0 < self.logprobs < TOP_LOGPROBS,
            "logprobs that say nothing (the written token has all the probability)": self.degenerate,
            "a schema without bounds": self.schema == "plain",
            "no schema": self.schema == "none",
            f"reasoning_effort {self.effort}": bool(self.effort),
            "it thinks first": self.thinks,
            "the same answer at any temperature": self.steady,
        }
        return [words for words, holds in said.items() if holds]

    def changing(self) -> str:
        """The part that may change an answer, for the ledger's keys and the protocol card; "" = nothing."""
        said = {"no temperature": not self.temperature, f"reasoning_effort {self.effort}": bool(self.effort)}
        said |= {f"schema {self.schema}": self.schema == "plain", NO_LIMIT: not self.limit}
        return ", ".join(words for words, holds in said.items() if holds)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def first(base_url: str) -> Dialect:
    """The one to begin with at an address."""
    return Dialect(limit=NEW_NAME if urlsplit(base_url).hostname in NEW_NAME_HOSTS else OLD_NAME)


def from_json(text: str) -> Dialect | None:
    """One that was kept; None where there is none or it cannot be read."""
    try:
        found = Dialect(**json.loads(text))
    except (ValueError, TypeError):
        return None
    sound = found.schema in get_args(Schema) and isinstance(found.logprobs, int) and isinstance(found.limit, str)
    return found if sound else None


def fitted(request: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """The request as the dialect has it. It is written with the protocol's old names, all of its parameters."""
    sent = dict(request)
    limit = sent.pop(OLD_NAME, None)
    if dialect.limit and limit is not None:
        sent[dialect.limit] = limit
    if not dialect.temperature:
        sent.pop("temperature", None)
    if not dialect.seed:
        sent.pop("seed", None)
    if "logprobs" in sent:
        if dialect.logprobs:
            sent["top_logprobs"] = dialect.logprobs
        else:
            del sent["logprobs"], sent["top_logprobs"]
    if "response_format" in sent:
        if dialect.schema == "none":
            del sent["response_format"]
        elif dialect.schema == "plain":
            sent["response_format"] = _without_bounds(sent["response_format"])
    if dialect.effort and "reasoning_effort" not in sent:
        sent["reasoning_effort"] = dialect.effort
    return sent


def adapted(dialect: Dialect, sent: Mapping[str, Any], parameter: str, said: str) -> Dialect | None:
    """The dialect after a refusal: without the parameter that it names, renamed or smaller. None when it names none.

    `sent` is the request that was refused, `parameter` what the server calls the culprit ("" where it does not), `said`
    its words.
    """
    name = _named(sent, parameter, said)
    if wrong_value(sent, parameter, said):
        return None
    if name in (OLD_NAME, NEW_NAME):
        other = NEW_NAME if name == OLD_NAME else OLD_NAME
        return replace(dialect, limit="" if dialect.renamed else other, renamed=True)
    if name == "temperature":
        return replace(dialect, temperature=False)
    if name == "seed":
        return replace(dialect, seed=False)
    if name == "top_logprobs":
        return replace(dialect, logprobs=_fewer(dialect.logprobs, said))
    if name == "logprobs":
        return replace(dialect, logprobs=_fewer(dialect.logprobs, said) if _OF_VALUE.search(said) else 0)
    if name == "response_format":
        return replace(dialect, schema="plain" if dialect.schema == "bounds" and _has_bounds(sent) else "none")
    if name == "reasoning_effort" and dialect.effort:
        return replace(dialect, effort="")
    return None


def wrong_value(sent: Mapping[str, Any], parameter: str, said: str) -> str:
    """The parameter whose number a refusal is about, and not whether it may be sent at all; "" = none.

    A temperature of 0 is nobody's choice: where it is out of bounds, none is sent.
    """
    name = _named(sent, parameter, said)
    chosen = name in (OLD_NAME, NEW_NAME) or (name == "temperature" and sent["temperature"] != 0)
    return name if chosen and _OF_VALUE.search(said) and not _OF_NAME.search(said) else ""


_OF_VALUE = re.compile(
    r"too (?:large|high|small|low|many|big)|at (?:most|least)|(?:greater|less|more|fewer) than|exceed|maximum|minimum|"
    r"between|range|up to|must be (?:≤|<=|>=|≥|<|>)|limited to|limit (?:is|of)",
    re.IGNORECASE,
)
_OF_NAME = re.compile(r"instead|unsupported|not supported|unrecogni[sz]ed|unknown|extra|unexpected", re.IGNORECASE)
_WORDS = (  # parameter of a request, and how servers speak of it; the more telling ones first
    (NEW_NAME, r"max_completion_tokens"),
    (OLD_NAME, r"max_tokens|max tokens"),
    ("top_logprobs", r"top_?logprobs|sample logprobs|top log ?prob"),
    ("logprobs", r"log[ _]?prob(?:s|abilities)?"),
    (
        "response_format",
        r"response_?format|json[_ ]?schema|response_?schema|structured[_ ]outputs?|guided_json|grammar",
    ),
    (
        "response_format",
        r"exclusiveM(?:in|ax)imum|multipleOf|additionalProperties|['\"`]m(?:in|ax)imum['\"`]|schema.{0,200}m(?:in|ax)imum",
    ),
    ("temperature", r"temperature"),
    ("seed", r"(?:random_)?seed"),
    ("reasoning_effort", r"reasoning[_ .]?effort|reasoning"),
)


def _named(sent: Mapping[str, Any], parameter: str, said: str) -> str:
    """The parameter of the request that a refusal is about; "" when it names none that was sent."""
    for words in (parameter, said):
        found = [
            (match.start(), order, name)
            for order, (name, pattern) in enumerate(_WORDS)
            if name in sent and (match := re.search(rf"(?<![A-Za-z]){pattern}", words or "", re.IGNORECASE))
        ]
        if found:
            return min(found)[2]
    return ""


def _fewer(asked: int, said: str) -> int:
    """How many alternatives to ask for next: what the server says that it gives, else fewer, else none."""
    allowed = [int(word) for word in re.findall(r"(?<![\w.])\d{1,2}(?![\w.]*\d)", said) if 0 < int(word) < asked]
    return max(allowed, default=next((fewer for fewer in FEWER if fewer < asked), 0))


def _has_bounds(sent: Mapping[str, Any]) -> bool:
    return _without_bounds(sent["response_format"]) != sent["response_format"]


def _without_bounds(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_bounds(value) for key, value in schema.items() if key not in BOUNDS}
    return [_without_bounds(one) for one in schema] if isinstance(schema, list) else schema
