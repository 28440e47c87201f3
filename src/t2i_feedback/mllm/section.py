"""The section `mllms` of params.yaml: the catalogue, name -> how to reach a model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_feedback.foundation.params import FREE, Count, Positive, Section


class LocalEntry(Section):
    """A checkpoint that transformers loads into this process."""

    backend: Literal["local"]
    model: Annotated[str, Field(min_length=1)]
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    quantisation: Literal["none", "8bit", "4bit"] = "none"
    templates: Literal["general", "postcards"] = "general"
    images: bool = True  # false: a model of text alone, which can enhance and nothing else
    reading: Literal["auto", "probability", "text"] = "auto"  # of yes/no and scores; auto = probability
    batch_size: Annotated[Count, FREE] = 8
    max_new_tokens: Count = 96
    trust_remote_code: bool = False


class EndpointEntry(Section):
    """A model behind an OpenAI-compatible server."""

    backend: Literal["endpoint"]
    model: Annotated[str, Field(min_length=1)]
    base_url: Annotated[str, Field(pattern=r"^https?://[^@]+$")]  # no password: keys come from api_key_env
    api_key_env: Annotated[str | None, FREE] = None  # name of the environment variable that holds the key
    templates: Literal["general", "postcards"] = "general"
    images: bool = True  # false: a model of text alone, which can enhance and nothing else
    reading: Literal["auto", "probability", "samples", "text"] = "auto"  # of yes/no and scores; auto = the best it has
    samples: Count = 5  # reading samples: how often each question is asked; 1 = auto skips that reading
    concurrency: Annotated[Count, FREE] = 8
    max_new_tokens: Count = 96
    timeout_seconds: Annotated[Positive, FREE] = 60
    retries: Annotated[int, Field(ge=0), FREE] = 4
    max_calls: Annotated[Count | None, FREE] = (
        None  # budget of all stages and runs that share the ledger; None = no limit
    )
    max_cost_usd: Annotated[Positive | None, FREE] = None
    usd_per_million_input_tokens: Annotated[float, Field(ge=0), FREE] = 0
    usd_per_million_output_tokens: Annotated[float, Field(ge=0), FREE] = 0

    @model_validator(mode="after")
    def _cost_is_reckoned(self) -> "EndpointEntry":
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if self.max_cost_usd is not None and not any(prices):
            raise ValueError(
                "max_cost_usd needs usd_per_million_input_tokens and usd_per_million_output_tokens: without them "
                "nothing costs anything, and it never stops"
            )
        return self


MllmEntry = Annotated[LocalEntry | EndpointEntry, Field(discriminator="backend")]
Catalogue = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], MllmEntry]
