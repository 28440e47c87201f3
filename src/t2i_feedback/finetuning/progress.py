"""The progress bars of training."""

from tqdm import tqdm

from t2i_feedback.foundation import distributed


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
