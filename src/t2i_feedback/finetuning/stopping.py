"""When training must not go on: after scores that teach nothing, and beyond the bounds of the section `finetune`."""

from collections.abc import Callable, Iterable, Sequence

from t2i_feedback.finetuning.scores import Scores
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import EpochRow


def check_scores(
    epoch: int, scores: Scores, config: Finetune, rewards: Iterable[str], describe_invalid: Callable[[], str]
) -> None:
    """Raises UserError when there is nothing to learn from an epoch's scores.

    `rewards` are the names of what was asked for; `describe_invalid` ends a message about scores that are missing.
    """
    where, valid = f"epoch {epoch + 1}", scores.valid()
    if not valid:
        raise UserError(f"{where}: none of the {len(scores.values)} images has a valid score{describe_invalid()}")
    if scores.masked > config.max_invalid_fraction * scores.asked:
        raise UserError(
            f"{where}: {scores.masked} of the {scores.asked} images asked about have no valid score, more than "
            f"finetune.max_invalid_fraction = {config.max_invalid_fraction:g} allows{describe_invalid()}"
        )
    if epoch == 0 and min(valid) == max(valid):
        raise UserError(
            f"{where}: every image got the reward {valid[0]:g} from {', '.join(rewards)}, so nothing can be "
            "learnt: let the judge read scores by probability, or choose another finetune.judge, preference or reward"
        )


def beyond_bounds(history: Sequence[EpochRow], config: Finetune) -> str:
    """Which bounds these epochs have gone beyond, in words; empty if none.

    Training ends there, with the last adapter within the bounds (`epochs_learnt`).
    """
    return ", and ".join(filter(None, (_beyond_held_out_drop(history, config), _beyond_kl(history, config))))


def epochs_learnt(history: Sequence[EpochRow], config: Finetune) -> int:
    """In how many of these epochs the adapter has learnt that training goes on with, or ends with at a bound.

    An epoch's held-out score is of what its images were drawn by, so a drop is the work of the epoch before. Its KL is
    of what its own updates made.
    """
    undone = 2 if _beyond_held_out_drop(history, config) else 1 if _beyond_kl(history, config) else 0
    return len(history) - undone


def _beyond_kl(history: Sequence[EpochRow], config: Finetune) -> str:
    if config.max_kl is not None and history and history[-1].kl > config.max_kl:
        return f"KL to the base model is {history[-1].kl:.3g}, above finetune.max_kl {config.max_kl:g}"
    return ""


def _beyond_held_out_drop(history: Sequence[EpochRow], config: Finetune) -> str:
    scores = [row.held_out_mean for row in history]
    if config.max_held_out_drop is None or not scores or scores[0] is None or scores[-1] is None:
        return ""
    drop = scores[0] - scores[-1]
    if drop <= config.max_held_out_drop:
        return ""
    return (
        f"the held-out judge's score fell by {drop:.3g}, more than finetune.max_held_out_drop "
        f"{config.max_held_out_drop:g}"
    )
