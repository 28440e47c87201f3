"""Is the policy pleasing its judge instead of the user? Signs of reward hacking in the record of fine-tuning."""

from collections.abc import Sequence
from statistics import fmean

from t2i_feedback.foundation.rows import EpochRow

ENDS = 3  # epochs averaged at either end of the curve, at most a third of it
NOTICEABLE = 0.25  # of the first epoch's spread: smaller changes of a score are noise
FOLLOWS = 0.25  # share of the reward's gain that the held-out judge must see
KEEPS = 0.7  # share of the first diversity that must remain
FAR = 1.0  # KL to the base model per latent dimension, above which the images are hardly the base model's any more
DEAD = 0.5  # share of prompts without any spread in their rewards from which nothing is learnt


def alarms(history: Sequence[EpochRow], epochs: int) -> list[str]:
    """One sentence for each sign that is there; empty when all is well. `epochs` were asked for."""
    if not history:
        return []
    found = []
    gain, held_out = change(history, "reward_mean") or 0.0, change(history, "held_out_mean")
    noticeable = gain > NOTICEABLE * history[0].reward_std
    if noticeable and held_out is not None and held_out < FOLLOWS * gain:
        found.append(
            f"The reward rose by {gain:.2f}, but the held-out judge sees {held_out:+.2f}: "
            "the adapter may exploit the judge rather than meet the preference."
        )
    diversity = ends(history, "diversity")
    if diversity and diversity[1] < KEEPS * diversity[0]:
        found.append(
            f"Images of one prompt became alike: their distance fell from {diversity[0]:.3g} to {diversity[1]:.3g}."
        )
    if (farthest := max(row.kl for row in history)) > FAR:
        found.append(f"KL to the base model reached {farthest:.3g} per latent dimension: the policy has left it.")
    if len(history) < epochs:
        found.append(
            f"Training ended after epoch {len(history)} of {epochs}: it went beyond finetune.max_kl or "
            "finetune.max_held_out_drop, and the adapter is the last within it."
        )
    if (dead := fmean(row.dead_groups for row in history)) > DEAD:
        found.append(f"For {dead:.0%} of the prompts all images scored alike, so nothing could be learnt from them.")
    return found


def ends(history: Sequence[EpochRow], field: str) -> tuple[float, float] | None:
    """Means over the first and the last epochs; None when the field was not measured there."""
    count = max(1, min(ENDS, len(history) // 3))
    before, after = ([getattr(row, field) for row in rows] for rows in (history[:count], history[-count:]))
    return None if None in [*before, *after] else (fmean(before), fmean(after))


def change(history: Sequence[EpochRow], field: str) -> float | None:
    found = ends(history, field)
    return found[1] - found[0] if found else None
