"""What a reward is: a function from images and their prompts to scores, and the facts that stand beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2i_feedback.mllm.base import Mllm
    from t2i_feedback.mllm.roles import Typed

Reward = Callable[[list["Image"], list[str]], list[float | None]]  # None where there is no valid score
Role = Literal["judge", "validator"]  # what an MLLM is asked as


@dataclass(frozen=True)
class Context:
    """What a run hands to its rewards. A reward takes what it needs."""

    preference: str  # the user's, in words
    user: str  # who has it: mllm, pixels or file (`finetune.user`)
    judge: "Mllm | None"  # None in a run that asks it nothing
    captions: Mapping[str, str]  # prompt -> the caption that it was made from
    folder: Path  # of the run's unfinished work
    sheets: Path  # where score sheets for people lie
    invalid: "list[Typed]" = field(default_factory=list)  # answers without a score are added here, for a message

    @property
    def present_judge(self) -> "Mllm":
        if self.judge is None:
            raise ValueError("these rewards ask the judge, and none was given")
        return self.judge


@dataclass(frozen=True)
class RewardKind:
    """All that there is to know about a reward. `REWARDS` of a module in this package is a tuple of these."""

    name: str  # its key in `finetune.reward`
    raw: str  # what its value is, with its range
    point: float | Callable[[int], float]  # raw value that counts like a point of the preference; of the image's pixels
    unit: str  # of the raw value
    giver: str  # who gives it: the user, pixels, the judge, ...
    make: Callable[[Context], Reward]
    asks: Role | None = None  # role in which the judge's model gets one question per image; None = it is not asked

    def point_at(self, pixels: int) -> float:
        """One point, for images of so many pixels."""
        return self.point(pixels) if callable(self.point) else self.point

    def asked_by(self, user: str) -> Role | None:
        """The role in which the judge's model is asked, if this user has the preference."""
        return None if self.giver == "user" and user != "mllm" else self.asks
