"""What tools say that look at the data set before a run has made it."""

from pathlib import Path

from t2i_feedback.foundation.errors import UserError


def demand(captions: Path) -> None:
    """Raises UserError where stage `data` has not made these captions; the whole experiment need not have run."""
    if not captions.exists():
        raise UserError(f"{captions} is missing: `dvc repro data` makes it, by data.* of params.yaml")
