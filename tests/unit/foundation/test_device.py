"""Which device is chosen, and what is said of one that is not here."""

import pytest
import torch

from t2i_feedback.foundation import device
from t2i_feedback.foundation.errors import UserError


def machine(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Pretend that this machine has these devices beside its CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)


@pytest.mark.parametrize(("names", "first"), [(("cuda", "mps"), "cuda"), (("mps",), "mps"), ((), "cpu")])
def test_auto_is_the_first_of_cuda_mps_and_cpu_that_is_here(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], first: str
) -> None:
    machine(monkeypatch, *names)
    assert device.pick("auto", "model.device") == first


def test_a_device_that_is_not_here_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(UserError) as caught:
        device.pick("cuda", "mllms.llava.device")
    assert str(caught.value) == "mllms.llava.device: cuda is not available on this machine; use auto or cpu"
