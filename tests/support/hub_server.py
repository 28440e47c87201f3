"""A model hub of one checkpoint, `good/model`, and of three that cannot be had, with the real one's answers."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import sys
from tiny_diffusion import model
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.foundation.errors import UserError
for name, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        load_image_model(model(name=name, revision=revision))
        print("> loaded")
    except UserError as error:
        print(">", error)
"""


class Hub(BaseHTTPRequestHandler):
    folder: Path  # of good/model

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models")
        name = "/".join(path.split("/")[1:3])
        if name == "gated/model":
            return self._send(403, error="GatedRepo")
        if name == "no/such":
            return self._send(401, error="RepoNotFound")
        if f"/{COMMIT}" not in path and "/main" not in path and path.count("/") > 2:
            return self._send(404, error="RevisionNotFound")
        if self.path.startswith("/api"):
            files = [file for file in self.folder.rglob("*") if file.is_file()]
            names = [file.relative_to(self.folder).as_posix() for file in files]
            if "/tree/" in path:
                found: Any = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": COMMIT}
                    for name, file in zip(names, files, strict=True)
                ]
            else:
                found = {"id": name, "modelId": name, "sha": COMMIT, "tags": []}
                found["siblings"] = [{"rfilename": name} for name in names]
            return self._send(200, json.dumps(found).encode(), kind="application/json")
        file = self.folder / "/".join(path.split("/")[5:])
        if name == "no/index" or not file.is_file():
            return self._send(404, error="EntryNotFound")
        return self._send(200, file.read_bytes())

    def _send(self, code: int, body: bytes = b"", error: str = "", kind: str = "application/octet-stream") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server:
    def __init__(self, url: str):
        self.url = url

    def ask(self, *models: tuple[str, str], cache: Path, offline: bool = False) -> list[str]:
        """What a program says that loads the models (name, revision) from this hub."""
        here = Path(__file__).parent
        environment = os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1] / "src")]),
        }
        command = [sys.executable, "-c", ASK, *(word for model in models for word in model)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cache, check=False)
        assert done.returncode == 0, done.stderr
        return [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]


@contextmanager
def hub(folder: Path) -> Iterator[Server]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Hub,), {"folder": folder}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
