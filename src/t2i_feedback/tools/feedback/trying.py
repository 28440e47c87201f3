"""Try: a prompt that is typed on the page is improved, and its rounds appear as they come. One prompt at a time."""

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from t2i_feedback import params
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.loop import rounds
from t2i_feedback.tools.improve import page
from t2i_feedback.tools.improve.improving import Improver

LONGEST = 1000  # characters of a prompt


class Typed(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(max_length=LONGEST)]
    adapter: bool  # draw with the fine-tuned model


class Round(BaseModel):
    """An image, and what was said of it."""

    image: str  # its address
    prompt: str
    outcome: str
    missed: str  # what the validator did not find; empty if nothing was said
    kept: bool  # it is the best so far


class Tried(BaseModel):
    """What the page shows."""

    running: bool
    prompt: str  # that was typed last
    rounds: list[Round]
    max_rounds: int
    folder: str  # where all of it is kept, once there is something
    problem: str  # in a line; empty if there is none
    warning: str  # what the models cannot know of the prompt; empty if there is nothing
    trained: bool  # there is an adapter to draw with


class Trying:
    """Improves a prompt in a thread, as `make improve` does. `busy` says why none can be now; empty if one can.

    The thread ends with the program; what was drawn and answered is kept, and taken up when the prompt is typed again.
    """

    def __init__(self, busy: Callable[[], str]):
        self._busy = busy
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._number = 0  # of prompts so far: an address is never another image's
        self._prompt, self._problem, self._max_rounds = "", "", 0
        self._improver: Improver | None = None
        self._rows: list[ImageRow] = []

    def start(self, text: str, adapter: bool) -> None:
        """Begins with a prompt. Raises UserError when it is blank or when another is under way."""
        prompt = " ".join(text.split())
        if not prompt:
            raise UserError("type what the image is to show")
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise UserError("one prompt at a time: this one is still under way")
            if why := self._busy():
                raise UserError(why)
            self._number += 1
            self._prompt, self._problem, self._improver, self._rows = prompt, "", None, []
            self._thread = threading.Thread(target=self._improve, args=(prompt, adapter), daemon=True)
            self._thread.start()

    def _improve(self, prompt: str, adapter: bool) -> None:
        try:
            p = params.load()
            self._max_rounds = p.stage1.max_rounds
            self._improver = Improver(p, [prompt], paths.ADAPTER if adapter else None)
            page.write(self._improver, self._improver.run(self._rows.extend))
        except UserError as error:
            self._problem = str(error)
        except Exception as error:  # a thread's would be seen by nobody
            traceback.print_exc(file=sys.stderr)
            self._problem = f"{type(error).__name__}: {first_line(error)}"

    def state(self) -> Tried:
        rows = list(self._rows)
        kept = rounds.keep(rows) if rows else None
        return Tried(
            running=self._thread is not None and self._thread.is_alive(),
            prompt=self._prompt,
            rounds=[
                Round(
                    image=f"/try/images/{self._number}/{index}",
                    prompt=row.prompt,
                    outcome=page.outcome(row),
                    missed=row.feedback or "",
                    kept=row is kept,
                )
                for index, row in enumerate(rows)
            ],
            max_rounds=self._max_rounds,
            folder=str(self._improver.folder) if self._improver and rows else "",
            problem=self._problem,
            warning=self._improver.warning if self._improver else "",
            trained=(paths.ADAPTER / ADAPTER_WEIGHTS).is_file(),
        )

    def image(self, number: int, index: int) -> Path | None:
        """The file of an image of the prompt with this number, if it is the present one."""
        if self._improver is None or number != self._number or not 0 <= index < len(self._rows):
            return None
        return self._improver.folder / self._rows[index].image


def routes(trying: Trying) -> APIRouter:
    """What the page of `Try` asks for."""
    router = APIRouter(prefix="/try")

    @router.get("/state")
    def state() -> Tried:
        return trying.state()

    @router.post("/prompts")
    def begin(typed: Typed) -> Tried:
        try:
            trying.start(typed.prompt, typed.adapter)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        return trying.state()

    @router.get("/images/{number}/{index}")
    def image(number: int, index: int) -> FileResponse:
        file = trying.image(number, index)
        if file is None or not file.is_file():
            raise HTTPException(404)
        return FileResponse(file, media_type="image/png")

    return router
