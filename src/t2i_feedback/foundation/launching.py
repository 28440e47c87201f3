"""A stage in several processes: start it under the launcher that T2I_LAUNCHER names, and say in a line why it failed.

T2I_LAUNCHER is a command prefix that DVC does not track, such as `torchrun --nproc-per-node 2`. A stage that can use
several processes (its module says `DIVIDED = True`) runs `$T2I_LAUNCHER -m t2i_feedback.stages.NAME ARGUMENTS` in its
own place; the others ignore it. Between the two lies a folder, named by T2I_LAUNCH, in which every process leaves a
file: empty when it has begun, with its one line when it had to stop.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

from t2i_feedback.foundation import distributed, ending, paths
from t2i_feedback.foundation.errors import UserError

LAUNCHER, LAUNCH = "T2I_LAUNCHER", "T2I_LAUNCH"
STDERR = "stderr"  # the pipe through which processes of this machine speak past the launcher, which is wordy
ORPHAN_SECONDS = 1.0  # between looks whether the launcher is still there
_FAILED = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)")  # in torchrun's account


def wanted() -> bool:
    """Whether a stage that several processes can share is to be started again, in several processes."""
    return bool(os.environ.get(LAUNCHER)) and LAUNCH not in os.environ


# ------------------------------------------------------------------------------------------------ the one that starts


def launch(stage: str, arguments: Sequence[str]) -> None:
    """Run the stage under the launcher, to its end. Raises UserError with the line of the process that failed."""
    prefix = shlex.split(os.environ[LAUNCHER])
    command = [*prefix, "-m", f"t2i_feedback.stages.{stage}", *arguments]
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="launch-", dir=paths.cache(), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _passing_on(folder / STDERR), (folder / "launcher").open("wb") as account:
            try:
                launcher = subprocess.Popen(command, stderr=account, env=os.environ | {LAUNCH: name})
            except OSError as error:
                raise UserError(f"{LAUNCHER}: {prefix[0]} cannot be started ({error.strerror})") from None
            status = _end_of(launcher)
        begun = {int(file.name): file.read_text() for file in folder.iterdir() if file.name.isdecimal()}
        told = (folder / "launcher").read_text(errors="replace")
    if status or not begun:
        raise UserError(_why(begun, told, status))


def _end_of(launcher: subprocess.Popen) -> int:
    """Its status. Whatever stops this process stops the launcher first, which stops the others."""
    with ending.unwound():
        try:
            return launcher.wait()
        finally:
            if launcher.poll() is None:
                launcher.terminate()
                launcher.wait()


@contextmanager
def _passing_on(pipe: Path) -> Iterator[None]:
    """While this lasts, what is written into the pipe appears on stderr as it comes."""
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    kept_open = os.open(pipe, os.O_WRONLY)

    def pass_on() -> None:
        while some := os.read(reader, 65536):
            sys.stderr.write(some.decode(errors="replace"))
            sys.stderr.flush()

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(kept_open)
        thread.join(2 * ORPHAN_SECONDS)


def _why(begun: dict[int, str], told: str, status: int) -> str:
    """What the user should know. `begun`: rank -> its line, empty if it left none; `told`: the launcher's account."""
    lines = list(dict.fromkeys(line for _, line in sorted(begun.items()) if line))
    if own := [line for line in lines if line != _PEER_EXITED]:
        return "\n".join(own)
    if not begun:
        account = f":\n{told.strip()}" if told.strip() else ""
        return f"{LAUNCHER}: {os.environ[LAUNCHER]!r} ended with status {status} and started nothing{account}"
    ended = {int(rank): int(code) for rank, code in _FAILED.findall(told)}
    guilty = [rank for rank in ended if begun.get(rank) != _PEER_EXITED and ended[rank] != -signal.SIGTERM]
    which = f"process {guilty[0] + 1} of the launch" if guilty else "a process of the launch"
    code = ended[guilty[0]] if guilty else 1
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
    unseen = f"\n{told.strip()}" if guilty and guilty[0] not in begun else ""
    return f"{which} {how}; what was done is kept, and the same command takes it up{unseen}"


# ------------------------------------------------------------------------------------------------ the started ones

_PEER_EXITED = "peer exited"  # what a process leaves that had to stop because of another


@contextmanager
def taking_part() -> Iterator[None]:
    """Around the stage's work: what a process of a launch does before and after. Only the first one speaks.

    Raises UserError when the launcher started one process alone.
    """
    if LAUNCH in os.environ:
        _announce()
        if distributed.world_size() < 2:
            raise UserError(
                f"{LAUNCHER}: {os.environ[LAUNCHER]!r} started one process alone (WORLD_SIZE is 1 or missing). On CPUs "
                "accelerate does so without a word: use torchrun there (docs/scaling.md), or unset the variable"
            )
    if not distributed.launched() and (foreign := [name for name in distributed.OF_LAUNCHERS if name in os.environ]):
        for name in foreign:  # nor does a library that this stage uses mistake them for its own
            del os.environ[name]
        print(
            f"{', '.join(foreign)} of the environment are ignored: no launcher has started this process; "
            f"{LAUNCHER} starts several (docs/scaling.md)",
            file=sys.stderr,
        )
    distributed.use_own_device()
    if distributed.is_main():
        yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    distributed.shut_down()


def stop(line: str, cause: BaseException) -> NoReturn:
    """End this process; its line reaches the user once, whichever processes say it."""
    if LAUNCH not in os.environ:
        sys.exit(line)
    try:
        _own_file().write_text(_PEER_EXITED if isinstance(cause, distributed.PeerExited) else line.partition(": ")[2])
    except OSError:  # a full disk takes no file either
        sys.exit(line)
    sys.exit(1)


def _own_file() -> Path:
    return Path(os.environ[LAUNCH]) / str(distributed.rank())


def _announce() -> None:
    """Say that this process has begun, speak past the launcher, and do not outlive it."""
    _own_file().touch()
    try:
        pipe = os.open(Path(os.environ[LAUNCH]) / STDERR, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        pass  # another machine than the one that listens: the launcher passes it on
    else:
        os.set_blocking(pipe, True)
        os.dup2(pipe, sys.stderr.fileno())
        os.close(pipe)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os._exit(1)
