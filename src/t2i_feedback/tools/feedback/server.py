"""The page on which a person scores images. Nobody else gets in.

It listens on this machine alone. A request needs the token of the printed address, which the first visit turns into a
cookie; the Host header must be the page's own, so that no other name can be made to lead here, and so must the Origin
of whatever changes something. Files are served by names that the score sheet has, and by no path.
"""

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards.answers import HIGHEST, LOWEST
from t2i_feedback.rewards.sheet import Sheet
from t2i_feedback.tools.feedback.training import Training

HERE = Path(__file__).parent
STATIC = {"page.js": "text/javascript", "page.css": "text/css"}
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


class State(BaseModel):
    """What the page shows."""

    waiting: list[Shown]  # without a score, in the order in which they are to be asked about
    scored: int  # images of this preference that have one
    training: str  # Training.State
    epoch: int  # epochs that are trained, as far as the log says
    epochs: int  # to be trained
    log: list[str]
    problem: str  # with the score sheet; empty if there is none


def make_app(sheet: Sheet, training: Training, epochs: int, port: int, token: str) -> FastAPI:
    """The page for one preference. Training starts by itself when nothing awaits a score."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    cookie = f"t2i-feedback-{port}"
    own = {f"127.0.0.1:{port}", f"localhost:{port}"}
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)

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
    def page() -> Response:
        html = templates.get_template("page.html.j2").render(
            preference=sheet.preference, lowest=LOWEST, highest=HIGHEST
        )
        return Response(html, media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(HERE / "static" / name, media_type=STATIC[name])

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
        found = _state(sheet, training, epochs)
        if not found.waiting and not found.problem:
            training.start()
        return _state(sheet, training, epochs)

    @app.post("/training")
    def start() -> State:
        training.start()
        return _state(sheet, training, epochs)

    return app


def _state(sheet: Sheet, training: Training, epochs: int) -> State:
    problem, lines = "", {}
    try:
        lines = sheet.read()
    except UserError as error:
        problem = str(error)
    waiting = [Shown(image=name, prompt=line.prompt) for name, line in lines.items() if line.score is None]
    return State(
        waiting=waiting,
        scored=len(lines) - len(waiting),
        training=training.state(),
        epoch=training.epochs_done(),
        epochs=epochs,
        log=training.tail(),
        problem=problem,
    )
