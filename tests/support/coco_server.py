"""A small data set in COCO's official layout, and a server for it on 127.0.0.1 that can misbehave."""

import io
import json
import re
import stat
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from PIL import Image

Behaviour = Literal[
    "ranges",
    "no ranges",
    "cut once",
    "cut always",
    "too short",
    "wrong range",
    "busy once",
    "slow",
    "trickle",
    "refuses",
]


def jpeg(shade: int, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 255 - shade, 90)).save(file, "JPEG")
    return file.getvalue()


def zipped(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def captions(split: str, ids: range) -> bytes:
    images = [{"id": i, "file_name": f"COCO_{split}_{i:012d}.jpg"} for i in ids]
    annotations = [
        {"id": 10 * i + k, "image_id": i, "caption": f"{split} thing {i}, told {k}"} for i in ids for k in range(2)
    ]
    return json.dumps({"images": images, "annotations": annotations}).encode()


def dataset(train: range = range(100, 112), val: range = range(1, 15)) -> dict[str, bytes]:
    """The official server's files: address -> contents."""
    files: dict[str, bytes] = {}
    notes = {}
    for split, ids in (("train2014", train), ("val2014", val)):
        notes[f"annotations/captions_{split}.json"] = captions(split, ids)
        images = {f"{split}/COCO_{split}_{i:012d}.jpg": jpeg(i) for i in ids}
        files |= images | {f"zips/{split}.zip": zipped(images)}
    return files | {"annotations/annotations_trainval2014.zip": zipped(notes)}


class CocoServer:
    """`files` may be changed while it runs; `behaviour` is of all files.

    `asked` counts requests by path; `most_at_once` those that waited together while "slow".
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.behaviour = files, "ranges"
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.most_at_once = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator["CocoServer"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join(5)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                with server._lock:
                    server.asked[name] += 1
                server._answer(self, name, server.asked[name] == 1)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, request: BaseHTTPRequestHandler, name: str, first: bool) -> None:
        content, behaviour = self.files.get(name), self.behaviour
        if content is None:
            request.send_error(404)
            return
        if behaviour == "refuses" or (behaviour == "busy once" and first):
            request.send_error(503 if first else 403)
            return
        if behaviour == "slow":
            self._wait()
        begin = 0
        version = f'"{hash(content)}"'
        asked = request.headers.get("Range")
        if asked:
            self.ranges.append(asked)
        same = request.headers.get("If-Range", version) == version
        if asked and same and behaviour not in ("no ranges", "too short"):
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if begin >= len(content):
                request.send_error(416)
                return
            shown = begin + 1 if behaviour == "wrong range" else begin
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[begin:]
        if behaviour != "endless":
            request.send_header("Content-Length", str(len(body) + (7 if behaviour == "too short" else 0)))
        request.send_header("ETag", version)
        request.end_headers()
        cut = behaviour == "cut always" or (behaviour in ("cut once", "wrong range") and first)
        self._write(request.wfile.write, body[: len(body) * 3 // 4] if cut else body)
        if behaviour == "endless":
            self._write(request.wfile.write, bytes(10_000_000))
        request.close_connection = True

    def _wait(self) -> None:
        """Before a byte is sent: once a client has its answer it may ask again, whatever this thread does meanwhile."""
        with self._lock:
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
        threading.Event().wait(0.1)
        with self._lock:
            self._waiting -= 1

    def _write(self, write: Callable[[bytes], object], body: bytes) -> None:
        with suppress(OSError):  # the client may hang up
            for start in range(0, len(body), 2**17):
                write(body[start : start + 2**17])
                if self.behaviour == "trickle":
                    threading.Event().wait(0.1)
