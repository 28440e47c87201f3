"""What training says of itself: bars, a line for each epoch, and the figures of the whole run."""

import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.rows import EpochRow


def bar(epoch: int, epochs: int, title: str, total: int, unit: str) -> tqdm:
    """Of `total` units in the epoch with this index, shown by the main process alone."""
    return tqdm(
        total=total,
        unit=unit,
        desc=f"epoch {epoch + 1}/{epochs} {title}",
        leave=False,
        mininterval=1,
        disable=not distributed.is_main(),
    )


def reporter(epochs: int, log: Callable[[int, Mapping[str, float]], None]) -> Callable[[EpochRow], None]:
    """To be called after each epoch: prints its line, with the seconds since the last one, and logs its numbers."""
    ended = time.monotonic()

    def report(row: EpochRow) -> None:
        nonlocal ended
        began, ended = ended, time.monotonic()
        log(row.epoch, row.numbers())
        print(
            f"finetune: epoch {row.epoch}/{epochs} reward {row.reward_mean:.2f} ± {row.reward_std:.2f}, "
            f"brightness {row.brightness:.0f}, kl {row.kl:.2g}, {ended - began:.0f} s",
            flush=True,
        )

    return report


def summary(history: Sequence[EpochRow], learnt: int) -> dict[str, float]:
    """First and last figures of a run whose adapter has learnt in so many of its epochs."""
    first, last = history[0], history[-1]
    fields = ("reward_mean", "held_out_mean", "diversity", "brightness", "contrast", "sharpness")
    found = {
        f"{name}_{when}": getattr(row, name) for name in fields for when, row in (("first", first), ("last", last))
    }
    return {name: value for name, value in found.items() if value is not None} | {
        "kl_last": history[learnt - 1].kl if learnt else 0.0,
        "masked": float(sum(row.masked for row in history)),
        "asked": float(sum(row.asked for row in history)),
        "invalid_judge": sum(row.masked for row in history) / max(1, sum(row.asked for row in history)),
        "epochs": float(len(history)),
    }
