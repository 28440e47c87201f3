"""One file over HTTP: taken up where it stopped, held to a size and a checksum, in its place only when it is whole.

Until then a file lies beside its place as `<name>.partial`, with `<name>.version.partial`, the server's word for which
version that is (ETag or Last-Modified): a rest is asked for only of the same version, or where a checksum will tell.
"""

import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import digest

CHUNK = 2**16  # bytes per read; at most this much is lost when a connection breaks
PROGRESS = 2**20  # bytes after which a broken connection counts as the first again
ATTEMPTS = 5  # connections in a row that may bring less than that
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses that another attempt may not meet
FAULTY = (  # addresses and redirections that no further attempt mends
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)


@dataclass(frozen=True)
class Pin:
    """What a file must be, and who says so (`origin` completes "the file that ...")."""

    size: int
    sha256: str
    origin: str


class _Broken(Exception):
    """A transfer ended early; the text says how. Another attempt may go on."""


class Server:
    """Files below one address. Threads may share it: it keeps up to `connections` of them open.

    `timeout` in seconds to connect and between two reads; `pause` in seconds before the second attempt, doubled for
    each further one.
    """

    def __init__(self, address: str, connections: int = 1, timeout: tuple[float, float] = (10, 30), pause: float = 1.0):
        self.address = address.rstrip("/")
        self._timeout, self._pause = timeout, pause
        self._stop = threading.Event()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))

    def stop(self) -> None:
        """End what other threads have under way; what they got is kept."""
        self._stop.set()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(
        self,
        name: str,
        file: Path,
        pin: Pin | None = None,
        limit: int | None = None,
        check: Callable[[Path], None] | None = None,
        bar: tqdm | None = None,
    ) -> None:
        """Fetch `<address>/<name>` as `file`; `bar` counts its bytes.

        `limit` is the most bytes that are taken. `check` may raise UserError for contents that it cannot use. Raises
        UserError of one line that says what to do by hand; what came is kept where going on with it makes sense.
        """
        url = f"{self.address}/{quote(name)}"
        by_hand = f"get it by hand and put it there as {file}, or set data.mirror to a server that has it"
        partial = file.with_name(f"{file.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        limit = pin.size if pin else limit
        attempts = 0
        while True:
            before = _size(partial)
            try:
                if not (pin and before == pin.size):
                    self._transfer(url, partial, pin, limit, bar, by_hand)
                break
            except _Broken as broken:
                attempts = 1 if _size(partial) - before >= PROGRESS else attempts + 1
                if attempts == ATTEMPTS:
                    kept = f"; {_size(partial)} bytes are kept and the same command goes on" if _size(partial) else ""
                    count = f"{attempts} attempt{'s' if attempts > 1 else ''}"
                    raise UserError(f"{url}: {broken}, after {count}: {by_hand}{kept}") from None
            if self._stop.wait(self._pause * 2 ** (attempts - 1)):
                raise UserError(f"{url}: stopped, since another file failed")
        try:
            if pin:
                check_pin(url, partial, pin)
            if check:
                _check_contents(url, partial, check)
        except UserError:
            _discard(partial)
            raise
        partial.replace(file)
        _version_file(partial).unlink(missing_ok=True)

    def _transfer(
        self, url: str, partial: Path, pin: Pin | None, limit: int | None, bar: tqdm | None, by_hand: str
    ) -> None:
        """One connection: appends to `partial`, or writes it anew. Raises _Broken, or UserError for a final refusal."""
        version = _version_file(partial).read_text() if _version_file(partial).exists() else ""
        have = _size(partial) if version or pin else 0
        if pin and have > pin.size:
            have = 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if version:
                headers["If-Range"] = version
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=self._timeout) as response:
                if response.status_code == 416 and have:
                    _discard(partial)
                    raise _Broken("the server has less of it than is here already")
                _check_status(response, url, by_hand)
                start, total = _extent(response, have)
                if pin and total is not None and total != pin.size:
                    raise UserError(
                        f"{url} is {total} bytes long, but the file that {pin.origin} has {pin.size}: {by_hand}"
                    )
                if limit is not None and total is not None and total > limit:
                    raise UserError(f"{url} is {total} bytes long; more than {limit} are not taken: {by_hand}")
                _check_space(partial, (total or 0) - start)
                if not start:
                    _discard(partial)
                    _version_file(partial).write_text(_version(response))
                self._receive(response, partial, start, total, limit, bar, url)
        except FAULTY as error:
            raise UserError(f"{url} leads nowhere ({error}): {by_hand}") from None
        except requests.exceptions.RequestException as error:
            raise _Broken(_reason(error)) from None

    def _receive(
        self,
        response: requests.Response,
        partial: Path,
        start: int,
        total: int | None,
        limit: int | None,
        bar: tqdm | None,
        url: str,
    ) -> None:
        have = start
        if bar is not None:
            bar.total = total
            bar.update(start - bar.n)
        try:
            with partial.open("ab") as out:
                for chunk in response.iter_content(CHUNK):
                    have += len(chunk)
                    if limit is not None and have > limit:
                        raise UserError(f"{url} goes on after {limit} bytes; more are not taken")
                    out.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
                    if self._stop.is_set():
                        raise UserError(f"{url}: stopped, since another file failed")
        except requests.exceptions.RequestException as error:
            raise _Broken(_ended(total, _reason(error))) from None
        if total is not None and have != total:
            raise _Broken(_ended(total, "the connection closed"))


def check_pin(what: str, file: Path, pin: Pin) -> None:
    """Raises UserError if the file is another one than it must be. `what` is its name for the user."""
    size, found = _size(file), digest(file)
    if (size, found) != (pin.size, pin.sha256):
        raise UserError(
            f"{what} is not the file that {pin.origin}: {size} bytes with SHA-256 {found}, not {pin.size} bytes with "
            f"{pin.sha256}"
        )


def _check_contents(url: str, partial: Path, check: Callable[[Path], None]) -> None:
    try:
        check(partial)
    except UserError as error:
        raise UserError(f"{url}: what came is of no use: {error}") from None


def _check_status(response: requests.Response, url: str, by_hand: str) -> None:
    if response.status_code in AGAIN:
        raise _Broken(f"the server answers {response.status_code} {response.reason}")
    if response.status_code not in (200, 206):
        missing = " (there is no such file)" if response.status_code in (404, 410) else ""
        raise UserError(f"{url}: the server answers {response.status_code} {response.reason}{missing}: {by_hand}")


def _extent(response: requests.Response, have: int) -> tuple[int, int | None]:
    """Where in the file the body begins, and the whole file's size if the server says it. Raises _Broken."""
    length = response.headers.get("Content-Length", "")
    body = int(length) if length.isdecimal() else None
    if response.status_code == 200:  # everything, whatever was asked for
        return 0, body
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not match or int(match[1]) != have:
        raise _Broken(f"the server answers with another part of the file than the one from byte {have}")
    total = int(match[3]) if match[3] != "*" else int(match[2]) + 1
    if body is not None and have + body != total:
        raise _Broken(f"the server says that the file has {total} bytes and sends {body} from byte {have}")
    return have, total


def _version(response: requests.Response) -> str:
    """What `If-Range` may name: a strong ETag, else the date."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name.removesuffix('.partial')}.version.partial")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)


def _ended(total: int | None, how: str) -> str:
    return f"it ends before {'it is whole' if total is None else f'its {total} bytes have come'} ({how})"


def _check_space(partial: Path, wanted: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if wanted > free:
        raise UserError(
            f"{partial} needs {wanted / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB free: free some, or set "
            f"data.downloads to a folder on another disk"
        )


def _reason(error: requests.exceptions.RequestException) -> str:
    """One short clause instead of requests' nested text."""
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
        return "the server does not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.exceptions.ConnectionError):
        cause = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
        return f"the server cannot be reached ({cause[1].strip() if cause else 'no connection'})"
    return " ".join(str(error).split())


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
