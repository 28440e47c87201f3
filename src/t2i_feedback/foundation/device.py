"""Which device a model is put on."""

from t2i_feedback.foundation.errors import UserError

BEST_FIRST = ("cuda", "mps", "cpu")


def pick(wanted: str, key: str) -> str:
    """`wanted`, or for "auto" the best device that this machine has; `key` is where params.yaml says it.

    Raises UserError for a device that is not here.
    """
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name in BEST_FIRST if here[name])
    if not here[wanted]:
        raise UserError(f"{key}: {wanted} is not available on this machine; use auto or cpu")
    return wanted
