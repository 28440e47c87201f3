"""The page on which a person scores images and tries prompts. Nobody else gets in.

It listens on this machine alone. A request needs the token of the printed address, which the first visit turns into a
cookie; the Host header must be the page's own, so that no other name can be made to lead here, and so must the Origin
of whatever changes something. Files are served by names that the score sheet has, and by no path.
"""

import secrets
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import open_rgb
from t2i_feedback.reporting.preferred import Preferred, Tally, tally
from t2i_feedback.rewards import answers
from t2i_feedback.rewards.answers import HIGHEST, LOWEST
from t2i_feedback.rewards.sheet import Line, Sheet
from t2i_feedback.tools.feedback import comparing, trying
from t2i_feedback.tools.feedback.pairing import Duel, duels
from t2i_feedback.tools.feedback.training import Training

HERE = Path(__file__).parent
PAIRS = 40  # are asked about
PAGES = {"/": "page.html.j2", "/try": "try.html.j2"}
STATIC = dict.fromkeys(("asking.js", "page.js", "try.js"), "text/javascript") | {"page.css": "text/css"}
BUSY = "the training is running: try a prompt when it is done or waits for scores"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Given(BaseModel):
    """A score from the page; None takes the last one back."""

    model_config = ConfigDict(extra="forbid")

    image: str
    score: Annotated[float, Field(ge=LOWEST, le=HIGHEST, strict=True)] | None


class Shown(BaseModel):
    """An image to be scored."""

    image: str
    prompt: str


class Compared(BaseModel):
    """Which of two images of one prompt is better; None takes the last answer about them back."""

    model_config = ConfigDict(extra="forbid")

    left: str
    right: str
    better: Literal["left", "right", "neither"] | None


class Chosen(BaseModel):
    """Which image of a held-out caption is preferred."""

    model_config = ConfigDict(extra="forbid")

    pair: int
    preferred: Literal["left", "right", "neither"]


class State(BaseModel):
    """What the page shows."""

    waiting: list[Shown]  # without a score, in the order in which they are to be asked about
    duels: list[Duel]  # what to ask next of each prompt, where two of its images are compared
    scored: int  # images of this preference that have one
    training: str  # Training.State
    epoch: int  # epochs that are trained, as far as the log says
    epochs: int  # to be trained
    log: list[str]
    problem: str  # with what was answered; empty if there is none
    trained: bool  # an adapter is there
    pairs: list[int]  # of held-out images, before and after fine-tuning, that await an answer
    tally: Tally | None  # once all pairs are answered, so that nobody is led


def make_app(
    sheet: Sheet, training: Training, epochs: int, port: int, token: str, *, by_pairs: bool = False
) -> FastAPI:
    """The page for one preference. Training starts by itself when nothing awaits a score.

    `by_pairs`: the page asks about two images of a prompt at a time, until its reader wants it otherwise.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    cookie = f"t2i-feedback-{port}"
    own = {f"127.0.0.1:{port}", f"localhost:{port}"}
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    app.include_router(trying.routes(trying.Trying(lambda: BUSY if training.state() == "running" else "")))

    @app.middleware("http")
    async def nobody_else(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        changes = request.method not in ("GET", "HEAD")
        known = secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode())
        if host not in own or ((origin is not None or changes) and origin != f"http://{host}"):
            response = Response("not from here", 403)
        elif request.url.path == "/" and "token" in request.query_params:
            response = _welcome(request.query_params["token"])
        elif not known:
            response = Response("open the whole address that `make feedback` printed", 401)
        else:
            response = await follow(request)
        response.headers.update(HEADERS)
        return response

    def _welcome(given: str) -> Response:
        if not secrets.compare_digest(given.encode(), token.encode()):
            return Response("this token is not the one that `make feedback` printed last", 401)
        response = RedirectResponse("/", 303)  # so that the token stays out of the address bar
        response.set_cookie(cookie, token, httponly=True, samesite="strict")
        return response

    @app.get("/")
    @app.get("/try")
    def page(request: Request) -> Response:
        html = templates.get_template(PAGES[request.url.path]).render(
            preference=sheet.preference, lowest=LOWEST, highest=HIGHEST, by_pairs=by_pairs, longest=trying.LONGEST
        )
        return Response(html, media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(HERE / "static" / name, media_type=STATIC[name])

    @app.get("/favicon.ico")
    def no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/images/{name}")
    def image(name: str) -> Response:
        if name not in sheet.read() or "/" in name or "\\" in name or not (sheet.folder / name).is_file():
            raise HTTPException(404)
        return FileResponse(sheet.folder / name, media_type="image/png")

    @app.get("/state")
    def state() -> State:
        return _state(sheet, training, epochs)

    @app.post("/answers")
    def answer(given: Given) -> State:
        try:
            sheet.answer(given.image, given.score)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        return _went_on()

    @app.post("/comparisons")
    def compare(given: Compared) -> State:
        try:
            sheet.compare(given.left, given.right, given.better)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        return _went_on()

    def _went_on() -> State:
        found = _state(sheet, training, epochs)
        if found.waiting or found.problem:
            return found
        training.start()
        return _state(sheet, training, epochs)

    @app.get("/pairs/{number}/{side}")
    def of_pair(number: int, side: comparing.Side) -> Response:
        pairs = comparing.drawn_pairs()
        if not 0 <= number < len(pairs):
            raise HTTPException(404)
        # the pixels alone: the file's own text would tell which is which
        return Response(_pixels(pairs[number].left if side == "left" else pairs[number].right), media_type="image/png")

    @app.get("/pairs/{number}")
    def caption(number: int) -> str:
        pairs = comparing.drawn_pairs()
        if not 0 <= number < len(pairs):
            raise HTTPException(404)
        return pairs[number].caption

    @app.post("/pairs")
    def choose(given: Chosen) -> State:
        pairs = comparing.drawn_pairs()
        if not 0 <= given.pair < len(pairs):
            raise HTTPException(422, "there is no such pair any more")
        pair = pairs[given.pair]
        preferred: Literal["before", "after", "neither"] = "neither"
        if given.preferred != "neither":
            preferred = "after" if given.preferred == pair.after else "before"
        said = Preferred(adapter=comparing.adapter_digest(), caption_id=pair.caption_id, preferred=preferred)
        answers.append(sheet.comparisons, said)
        return _state(sheet, training, epochs)

    @app.post("/drawing")
    def draw() -> State:
        training.draw()
        return _state(sheet, training, epochs)

    @app.post("/training")
    def start() -> State:
        training.start()
        return _state(sheet, training, epochs)

    return app


def _state(sheet: Sheet, training: Training, epochs: int) -> State:
    lines: dict[str, Line] = {}
    problem, order, pairs, counted = "", [], [], None
    try:
        lines = sheet.read()
        order = [name for name in dict.fromkeys([*sheet.asked(), *lines]) if name in lines]
        drawn = comparing.drawn_pairs()[:PAIRS]
        if drawn:
            adapter = comparing.adapter_digest()
            said = answers.read(sheet.comparisons, Preferred)
            known = {one.caption_id for one in said if one.adapter == adapter}
            pairs = [number for number, pair in enumerate(drawn) if pair.caption_id not in known]
            counted = None if pairs else tally(said, adapter)
    except UserError as error:
        problem = str(error)
    waiting = [Shown(image=name, prompt=lines[name].prompt) for name in order if lines[name].score is None]
    return State(
        waiting=waiting,
        duels=duels(lines, sheet.asked() or order),
        scored=len(lines) - len(waiting),
        training=training.state(),
        epoch=training.epochs_done(),
        epochs=epochs,
        log=training.tail(),
        problem=problem,
        trained=(paths.ADAPTER / ADAPTER_WEIGHTS).is_file(),
        pairs=pairs,
        tally=counted,
    )


def _pixels(image: Path) -> bytes:
    written = BytesIO()
    open_rgb(image).save(written, format="PNG")
    return written.getvalue()
