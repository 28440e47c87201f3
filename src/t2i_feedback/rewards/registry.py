"""The rewards that there are, by name, and their weighted sum.

A run's reward is a weighted sum. Each reward is brought to the preference's scale by a fixed figure first, its `point`,
so that a weight means the same for all of them and a resumed run has nothing to remember. A negative weight wants less
of a thing: `jpeg_size: -1` is the compressibility of the DDPO paper, `jpeg_size: 1` its incompressibility (Black et
al., "Training diffusion models with reinforcement learning", 2023).
"""

from collections.abc import Callable, Iterator, Mapping

from t2i_feedback import rewards
from t2i_feedback.foundation import discovery
from t2i_feedback.rewards.base import Context, Reward, RewardKind, Role

GIVERS = ("user", "pixels", "judge")  # in this order rewards are summed, which decides rounding; then any others


def kinds() -> dict[str, RewardKind]:
    """Every reward by name. Raises ValueError when two have one name."""
    found = [kind for some in discovery.defined(rewards, "REWARDS") for kind in some]
    found.sort(key=lambda kind: GIVERS.index(kind.giver) if kind.giver in GIVERS else len(GIVERS))
    by_name = {kind.name: kind for kind in found}
    if len(by_name) < len(found):
        raise ValueError(f"two rewards have one name: {', '.join(kind.name for kind in found)}")
    return by_name


def problems(weights: Mapping[str, float], user: str) -> Iterator[str]:
    """What is wrong with `finetune.reward` and `finetune.user` together, a line for each."""
    known = kinds()
    if unknown := [name for name in weights if name not in known]:
        yield f"finetune.reward: {', '.join(unknown)} is no reward; there are {', '.join(known)}"
    elif any(weights.values()) and user != "mllm" and not any(known[name].giver == "user" for name in used(weights)):
        yield f"finetune.user: user {user} scores the preference, which has no weight in finetune.reward"


def used(weights: Mapping[str, float]) -> dict[str, float]:
    """Name -> weight, in the order of the sum, without those of weight 0."""
    return {name: weights[name] for name in kinds() if weights.get(name)}


def questions(weights: Mapping[str, float], user: str) -> list[Role]:
    """The roles in which the judge's model is asked about an image, one question each."""
    known = kinds()
    roles = [known[name].asked_by(user) for name in used(weights)]
    return [role for role in roles if role]


def make(weights: Mapping[str, float], context: Context) -> dict[str, Reward]:
    """The rewards of a run by name. Raises UserError when one cannot be had."""
    known = kinds()
    return {name: known[name].make(context) for name in used(weights)}


def total(weights: Mapping[str, float], pixels: int) -> Callable[[Mapping[str, float]], float]:
    """The function that makes an image's reward of its raw values by name. `pixels` of an image."""
    known, weighed = kinds(), used(weights)
    points = {name: known[name].point_at(pixels) for name in weighed}
    return lambda raw: sum(weight * raw[name] / points[name] for name, weight in weighed.items())
