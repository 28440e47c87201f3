"""The small checkpoints that tests share, and hypothesis trying the same examples every time."""

import gc

import pytest
from hypothesis import settings
from shared_checkpoints import checkpoint_folder, llava_folder  # noqa: F401

from t2i_feedback.foundation import running

gc.set_threshold(*running.GARBAGE)
settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="there is no CUDA here"))
