"""What fine-tuning maximises: functions from pictures to scores, `None` where there is no valid score."""

from collections.abc import Callable

from PIL import Image

from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm

Reward = Callable[[list[Image.Image], list[str]], list[float | None]]


def preference(mllm: Mllm, text: str, max_invalid_fraction: float) -> Reward:
    """The judge's expected score, 1 to 10, of how well a picture fits the preference; the prompt plays no part."""

    def reward(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
        outcomes = roles.score_preference(mllm, images, text)
        roles.check_invalid(outcomes, max_invalid_fraction, "scores")
        return [outcome.value for outcome in outcomes]

    return reward
