"""The small checkpoints that tests share, and hypothesis trying the same examples every time."""

from hypothesis import settings
from shared_checkpoints import checkpoint_folder, llava_folder  # noqa: F401

settings.register_profile("same every time", derandomize=True, deadline=None)
settings.load_profile("same every time")
