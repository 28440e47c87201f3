"""The preference: the score of the user, whoever plays the user (`finetune.user`)."""

from t2i_feedback.rewards.base import Context, Reward, RewardKind
from t2i_feedback.rewards.human import person, sheet_of
from t2i_feedback.rewards.mllm import preference
from t2i_feedback.rewards.pixels import photometric

USERS = {
    "mllm": lambda context: preference(context.present_judge, context.preference, context.invalid),
    "pixels": lambda context: photometric(context.preference),
    "file": lambda context: person(sheet_of(context.preference, context.sheets), context.folder),
}


def of_user(context: Context) -> Reward:
    return USERS[context.user](context)


REWARDS = (
    RewardKind(
        name="preference",
        raw="the user's score, 1..10",
        point=1.0,
        unit="points",
        giver="user",
        make=of_user,
        asks="judge",
    ),
)
