"""What tools say that look at the data set before a run has made it."""

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError


def demand() -> None:
    """Raises UserError where stage `data` has not run; the whole experiment need not."""
    if not paths.EVALUATION_CAPTIONS.exists():
        raise UserError(f"{paths.EVALUATION_CAPTIONS} is missing: `dvc repro data` makes it, by data.* of params.yaml")
