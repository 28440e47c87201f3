"""The section `model` of params.yaml: the text-to-image model and how it samples."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from t2i_feedback.foundation.params import CHECKPOINT, FREE, LATER, Count, Section, Share, Size, sides

Scheduler = Literal["auto", "ddim", "pndm", "dpmsolver++", "euler"]
NoiseKind = Literal["ddim", "flow_sde", "cps", "dance_sde"]  # of a rollout's steps: `transitions`


def check_level(kind: NoiseKind, level: float) -> None:
    """Raises ValueError if no noise of the kind is of that level: DDIM's eta and the share of cps end at 1."""
    if kind in ("ddim", "cps") and level > 1:
        raise ValueError(f"level {level:g}: {kind} has 1 at most")


def _off_or_on(value: object) -> object:
    """A boolean is the word that some YAML writers take for one."""
    return {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value


class Model(Section):
    name: Annotated[str, Field(min_length=1), CHECKPOINT]
    revision: str
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$"), LATER] = (
        ""  # of the weights' files: fp16; "" = the plain ones
    )
    dtype: Literal["float32", "bfloat16", "float16"]
    vae_dtype: Literal["same", "float32"]
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], FREE]
    size: Size
    scheduler: Scheduler
    steps: Annotated[int, Field(ge=2, le=1000)]
    guidance: Annotated[float, Field(ge=1)]
    negative_prompt: str
    eta: Share
    batch_size: Annotated[Count, FREE]
    safety_checker: Annotated[Literal["off", "report", "on"], BeforeValidator(_off_or_on)]
    attention_slicing: Annotated[bool, FREE]
    vae_slicing: Annotated[bool, FREE]
    vae_tiling: bool
    offload: Annotated[bool, FREE]
    compile: Annotated[bool, FREE]
    max_sequence_length: Annotated[Count, LATER] = 256  # of the T5 text, for models that read one
    quantisation: Annotated[Literal["none", "8bit", "4bit"], LATER] = "none"

    @property
    def width(self) -> int:
        return sides(self.size)[0]

    @property
    def height(self) -> int:
        return sides(self.size)[1]

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.width * self.height

    @property
    def sampler(self) -> str:
        """How the arms are drawn, in words."""
        return f"DDIM, eta {self.eta:g}" if self.scheduler == "ddim" else self.scheduler

    def card(self) -> dict[str, object]:
        """Its lines of the protocol card: how the images were drawn."""
        return {
            "drawn_at": self.size,
            "model": self.name,
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
            "negative_prompt": self.negative_prompt or "none",
            "safety_checker": self.safety_checker,
        }

    @model_validator(mode="after")
    def _what_is_set_is_heeded(self) -> "Model":
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta {self.eta:g} is DDIM's noise; scheduler {self.scheduler} needs eta: 0")
        if self.negative_prompt and self.guidance == 1:
            raise ValueError("negative_prompt has no effect without guidance; set guidance above 1")
        return self
