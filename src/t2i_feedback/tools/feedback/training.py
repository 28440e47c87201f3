"""Training in a process of its own, which ends when it needs scores and is started again when they are there."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

State = Literal["none", "running", "ended", "failed"]
TAIL = 4000  # bytes of the log that are shown


class Training:
    """Runs `train`, or `draw`, which draws held-out captions; one at a time. What they print goes to the file `log`."""

    def __init__(self, train: Sequence[str], draw: Sequence[str], log: Path):
        self._train, self._draw, self.log = list(train), list(draw), log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts training, unless something runs already."""
        self._start(self._train)

    def draw(self) -> None:
        """Starts drawing, unless something runs already."""
        self._start(self._draw)

    def _start(self, command: list[str]) -> None:
        if self.state() == "running":
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            # a session of its own: Ctrl-C reaches this program, which ends the training by itself
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def state(self) -> State:
        """ended: it said that all is done."""
        if self._process is None:
            return "none"
        code = self._process.poll()
        return "running" if code is None else "ended" if code == 0 else "failed"

    def epochs_done(self) -> int:
        """Epochs of fine-tuning that are reported in the log; a run that is taken up reports the earlier ones again."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return max((int(epoch) for epoch in re.findall(r"^finetune: epoch (\d+)/", text, re.MULTILINE)), default=0)

    def tail(self) -> list[str]:
        """The last lines of the log; of a progress bar, what it shows now."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
        lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
        return [line for line in lines if line][-12:]

    def end(self) -> None:
        """Ends it as Ctrl-C would; its checkpoints are kept."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
