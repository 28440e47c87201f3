"""The backend `endpoint`: a model behind an OpenAI-compatible server."""

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2i_feedback.foundation.params import FREE, Count, Positive
from t2i_feedback.mllm.backends import Access, Entry

if TYPE_CHECKING:
    from t2i_feedback.mllm.base import Backend
    from t2i_feedback.mllm.ledger import Ledger


class EndpointEntry(Entry):
    """A server has a `concurrency` of its own, and its budget is kept in one ledger: one process asks it."""

    in_process: ClassVar[bool] = False

    backend: Literal["endpoint"]
    base_url: Annotated[str, Field(pattern=r"^https?://[^@]+$")]  # no password: keys come from api_key_env
    api_key_env: Annotated[str | None, FREE] = None  # name of the environment variable that holds the key
    reasoning: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None  # None = the server's own
    extra_body: dict[str, Any] = Field({})  # what else each request holds; it has the last word
    image_detail: Literal["low", "high", "auto"] | None = None  # how closely images are looked at; None = not said
    samples: Count = 5  # reading samples: how often each question is asked; 1 = auto skips that reading
    concurrency: Annotated[Count, FREE] = 8
    timeout_seconds: Annotated[Positive, FREE] = 60
    retries: Annotated[int, Field(ge=0), FREE] = 4
    max_calls: Annotated[Count | None, FREE] = (
        None  # budget of all stages and runs that share the ledger; None = no limit
    )
    max_cost_usd: Annotated[Positive | None, FREE] = None
    usd_per_million_input_tokens: Annotated[float, Field(ge=0), FREE] = 0
    usd_per_million_output_tokens: Annotated[float, Field(ge=0), FREE] = 0

    @field_validator("extra_body")
    @classmethod
    def _extra_is_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        ours = sorted(extra.keys() & {"model", "messages", "stream", "n", "max_tokens", "logprobs", "response_format"})
        if ours:
            raise ValueError(f"{', '.join(ours)}: every request says that itself; leave it out")
        return extra

    @model_validator(mode="after")
    def _cost_is_reckoned(self) -> "EndpointEntry":
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if self.max_cost_usd is not None and not any(prices):
            raise ValueError(
                "max_cost_usd needs usd_per_million_input_tokens and usd_per_million_output_tokens: without them "
                "nothing costs anything, and it never stops"
            )
        return self

    def access(self, name: str, ledger: "Ledger") -> Access:
        said = {"reasoning": self.reasoning, "extra_body": self.extra_body, "image_detail": self.image_detail}
        changed = {key: value for key, value in said.items() if value}
        identity = json.dumps(["endpoint", self.base_url, self.model, *([changed] if changed else [])])

        def load() -> "Backend":
            from t2i_feedback.mllm.budget import Budget
            from t2i_feedback.mllm.endpoint import EndpointMllm

            known = ledger.abilities(self.asked_about(identity))
            return EndpointMllm(name, self, Budget(name, self, ledger), known.protocol if known else "")

        return Access(identity, load)

    @property
    def thinks(self) -> bool:
        """Whether it is told to think before it answers."""
        return self.reasoning not in (None, "none")

    @property
    def account(self) -> str:
        return f"{self.base_url} {self.model}"

    @property
    def concurrent(self) -> int:
        return self.concurrency

    @property
    def times_asked(self) -> int:
        return self.samples

    def cost_usd(self, tokens_in: float, tokens_out: float) -> float:
        read, written = self.usd_per_million_input_tokens, self.usd_per_million_output_tokens
        return (read * tokens_in + written * tokens_out) / 1e6

    @property
    def key_variable(self) -> str | None:
        return self.api_key_env


ENTRY = EndpointEntry
