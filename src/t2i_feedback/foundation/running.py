"""The frame of a program: what the user can mend is one line, and several processes speak with one voice."""

import errno
import gc
import logging
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from t2i_feedback.foundation import durations, launching, pipeline
from t2i_feedback.foundation.errors import UserError

# Python looks for cycles after every 700 new objects, and ten times ten of those later among all: a sixth of the time
# that torch and its kin take to be imported. With these it looks at all of them after a million.
GARBAGE = (10_000, 10, 10)


def run(stage: Callable[..., None], *arguments: str) -> None:
    """Run a stage's function as a program: what the user can mend is one line on stderr, not a traceback."""
    gc.set_threshold(*GARBAGE)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "diffusers", "transformers", "PIL"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    name = _name(stage)
    try:
        divided = getattr(sys.modules[stage.__module__], "DIVIDED", False)  # several processes can share its work
        if divided and launching.wanted():
            launching.launch(name, arguments)
        else:
            with launching.taking_part(), _timed(stage, arguments):
                stage(*arguments)
    except UserError as error:
        launching.stop(f"{name}: {error}", error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was done is kept, and the same command takes it up.", file=sys.stderr)
        sys.exit(130)
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "disk is full" not in str(error):
            raise
        line = f"{name}: no disk space is left; free some and run the same command again, it goes on where it stopped."
        launching.stop(line, error)


def _timed(stage: Callable[..., None], arguments: tuple[str, ...]) -> AbstractContextManager[None]:
    """Around a stage of dvc.yaml, which says how long it takes; a tool does not."""
    if _full_name(stage).rpartition(".")[0] != pipeline.STAGES:
        return nullcontext()
    return durations.told("@".join((_name(stage), *arguments)))


def _name(program: Callable[..., None]) -> str:
    """What it is called: its module, or the package that is run."""
    return _full_name(program).removesuffix(".__main__").rpartition(".")[2]


def _full_name(program: Callable[..., None]) -> str:
    module = sys.modules[program.__module__]
    return module.__spec__.name if module.__spec__ else program.__module__
