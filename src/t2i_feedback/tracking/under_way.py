"""Which runs are being written to, so that a run whose process has died does not stay RUNNING in MLflow for ever.

A killed process tells MLflow nothing. So every process holds a lock file under .cache/mlflow for each run that it
writes to. The system lets go of it when the process ends, however it ends; the next process that writes to MLflow here
finds a file that nobody holds, and ends that run as KILLED. Runs of temporary experiments (`dvc exp run --temp`) have
their files in the same folder, that of the repository.
"""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from t2i_feedback.foundation import files, paths
from t2i_feedback.tracking import store
from t2i_feedback.tracking.interruptions import Terminated, interruptible, shielded

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from t2i_feedback.tracking.runs import Run


@contextmanager
def under_way(*runs: "Run") -> Iterator[None]:
    """While this lasts, the runs are RUNNING. Then they are FINISHED; after an exception FAILED, and after Ctrl-C or
    SIGTERM, of which the process dies as it would have, KILLED.

    Raises what MLflow raises. An exception of the block itself goes before one of ending the runs, which the next
    process does then.
    """
    with interruptible(), ExitStack() as held:
        with shielded():
            with store.one_at_a_time():
                locks = [held.enter_context(_lock(_file(run.run_id))) for run in runs]
            for run in runs:
                run.begin()
        try:
            yield
        except BaseException as error:
            with suppress(Exception):
                _end(runs, locks, "KILLED" if isinstance(error, KeyboardInterrupt | Terminated) else "FAILED")
            raise
        _end(runs, locks, "FINISHED")


def end_dead_runs() -> None:
    """End the runs as KILLED that are RUNNING for a process that has died. Raises what MLflow raises."""
    if not any(_folder().glob(f"{_store()}-*.lock")):
        return
    client, _ = store.connect()
    with store.one_at_a_time():
        for file in sorted(_folder().glob(f"{_store()}-*.lock")):
            with suppress(Timeout), _lock(file):  # else its process is alive
                run_id = file.stem.split("-")[1]
                if not _held(run_id, but=file):
                    _kill(client, run_id)
                file.unlink()


def _end(runs: "tuple[Run, ...]", locks: list[FileLock], status: str) -> None:
    with shielded():
        for run, lock in zip(runs, locks, strict=True):
            run.finish(status)
            Path(lock.lock_file).unlink()


def _kill(client: "MlflowClient", run_id: str) -> None:
    """End the run as KILLED if it is RUNNING, and if it is there: somebody may have deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise


def _held(run_id: str, but: Path) -> bool:
    """Whether another process, one with another file, writes to the run."""
    for file in _folder().glob(f"{_store()}-{run_id}-*.lock"):
        if file != but:
            try:
                with _lock(file):
                    pass
            except Timeout:
                return True
    return False


def _lock(file: Path) -> FileLock:
    """Entering it raises Timeout at once when another process holds it."""
    return FileLock(file, timeout=0, is_singleton=False)


def _file(run_id: str) -> Path:
    _folder().mkdir(parents=True, exist_ok=True)
    return _folder() / f"{_store()}-{run_id}-{uuid.uuid4().hex[:8]}.lock"


def _folder() -> Path:
    return paths.cache() / "mlflow"


def _store() -> str:
    """A name for the place where runs are kept: another place does not know these runs."""
    return files.text_digest(store.uri())[:8]
