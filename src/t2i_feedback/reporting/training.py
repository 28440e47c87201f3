"""What happened in fine-tuning, in sentences and curves: the reward, the held-out judge, what the user was asked."""

from t2i_feedback.reporting import alarm, plots
from t2i_feedback.reporting.evidence import Evidence
from t2i_feedback.reporting.plots import Plot
from t2i_feedback.reporting.tables import number, percent

CURVES = {
    "kl": "KL to the base model",
    "diversity": "Diversity within a prompt",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
}


def reward_text(evidence: Evidence) -> str:
    if not evidence.history:
        return "Nothing was fine-tuned: there is no history of epochs."
    reward, second = (alarm.ends(evidence.history, field) for field in ("reward_mean", "held_out_mean"))
    changes = [("the reward", reward), ("the held-out judge's score", second)]
    moves = [f"{name} from {number(ends[0], 2)} to {number(ends[1], 2)}" for name, ends in changes if ends]
    masked = sum(row.masked for row in evidence.history)
    asked = sum(row.asked for row in evidence.history)
    return f"First against last epochs: {', '.join(moves)}. {masked} of {asked} scores were invalid and left out."


def feedback_text(evidence: Evidence) -> str:
    """How many of the images the user was asked about, which, and how well a surrogate could have answered."""
    if not evidence.history:
        return ""
    config = evidence.settings
    asked, drawn = sum(row.asked for row in evidence.history), config.images_per_epoch * len(evidence.history)
    text = f"The user was asked about {asked} of {drawn} images ({percent(asked / drawn)})"
    if config.acquisition == "all":
        return f"{text}: finetune.acquisition all."
    text += f", chosen by finetune.acquisition {config.acquisition}"
    errors = [row.surrogate_error for row in evidence.history if row.surrogate_error is not None]
    if not config.surrogate_weight:
        return f"{text}; nothing was learnt from the others."
    text += "; the others have scores of a surrogate, which count the less the less sure they are, also in the mean"
    if errors:
        text += (
            f". On each epoch’s answers, before it knew them, it was off by {number(errors[0], 2)} points at first "
            f"and by {number(errors[-1], 2)} at last (root mean square)"
        )
    return f"{text}."


def epoch_curves(evidence: Evidence) -> list[Plot]:
    return [plots.epoch_curve(evidence.history, field, title) for field, title in CURVES.items()]
