"""Files over HTTP, from servers that behave and from servers that do not."""

import hashlib
import random
import socket
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from coco_server import CocoServer
from tqdm import tqdm

from t2i_feedback.datasets.download import Pin, Server
from t2i_feedback.foundation.errors import UserError

pytestmark = pytest.mark.slow  # needs servers

CONTENT = random.Random(1).randbytes(700_000)
PIN = Pin(len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "the test publishes")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[CocoServer]:
    with CocoServer({"zips/a.zip": CONTENT}).running() as running:
        yield running


def get(server: CocoServer, folder: Path, **options: object) -> bytes:
    with Server(server.address, timeout=(2, 2), pause=0) as source:
        source.get("zips/a.zip", folder / "a.zip", **options)
    assert [file.name for file in folder.iterdir()] == ["a.zip"]
    return (folder / "a.zip").read_bytes()


def refusal(server: CocoServer, folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        get(server, folder, **options)
    assert "\n" not in str(caught.value)
    assert f"{server.address}/zips/a.zip" in str(caught.value)
    assert not (folder / "a.zip").exists()
    return str(caught.value)


def interrupt(server: CocoServer, folder: Path, **options: object) -> int:
    """Leave a part of the file there; its size."""
    server.behaviour = "cut always"
    refusal(server, folder, **options)
    server.behaviour = "ranges"
    server.ranges.clear()
    return (folder / "a.zip.partial").stat().st_size


def test_a_file_arrives_whole(server: CocoServer, tmp_path: Path) -> None:
    assert get(server, tmp_path, pin=PIN) == CONTENT
    assert server.asked["zips/a.zip"] == 1


@pytest.mark.parametrize("pin", [PIN, None])
def test_a_broken_connection_goes_on_where_it_stopped(server: CocoServer, tmp_path: Path, pin: Pin | None) -> None:
    server.behaviour = "cut once"
    assert get(server, tmp_path, pin=pin) == CONTENT
    (asked,) = server.ranges
    assert len(CONTENT) // 2 < int(asked.removeprefix("bytes=").removesuffix("-")) < len(CONTENT)


def test_an_interrupted_run_is_taken_up_by_the_next(server: CocoServer, tmp_path: Path) -> None:
    have = interrupt(server, tmp_path)
    assert have > 0
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [f"bytes={have}-"]


def test_a_file_that_changed_in_between_starts_over(server: CocoServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.files["zips/a.zip"] = CONTENT[::-1]
    assert get(server, tmp_path) == CONTENT[::-1]


def test_a_part_of_unknown_version_is_not_gone_on_with(server: CocoServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    (tmp_path / "a.zip.version.partial").unlink()
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == []


def test_a_part_that_is_longer_than_the_file_starts_over(server: CocoServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    (tmp_path / "a.zip.partial").write_bytes(bytes(len(CONTENT) + 1))
    assert get(server, tmp_path) == CONTENT


def test_a_server_without_ranges_starts_over(server: CocoServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.behaviour = "no ranges"
    assert get(server, tmp_path) == CONTENT
    assert len(server.ranges) == 1


def test_a_server_that_sends_another_range_is_named(server: CocoServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.behaviour = "wrong range"
    assert "another part of the file than the one from byte" in refusal(server, tmp_path)


def test_a_server_that_is_busy_is_asked_again(server: CocoServer, tmp_path: Path) -> None:
    server.behaviour = "busy once"
    assert get(server, tmp_path) == CONTENT
    assert server.asked["zips/a.zip"] == 2


def test_a_server_that_promises_more_than_it_sends_is_named(server: CocoServer, tmp_path: Path) -> None:
    server.behaviour = "too short"
    assert f"ends before its {len(CONTENT) + 7} bytes have come" in refusal(server, tmp_path)


def test_a_length_that_is_not_the_published_one_is_named_before_anything_comes(
    server: CocoServer, tmp_path: Path
) -> None:
    server.files["zips/a.zip"] = CONTENT[:-1]
    message = refusal(server, tmp_path, pin=PIN)
    assert f"is {len(CONTENT) - 1} bytes long, but the file that the test publishes has {len(CONTENT)}" in message
    assert not (tmp_path / "a.zip.partial").exists()


def test_a_checksum_that_does_not_match_is_named_and_nothing_is_kept(server: CocoServer, tmp_path: Path) -> None:
    server.files["zips/a.zip"] = bytes(len(CONTENT))
    message = refusal(server, tmp_path, pin=PIN)
    assert "is not the file that the test publishes" in message
    assert PIN.sha256 in message
    assert list(tmp_path.iterdir()) == []


def test_no_more_is_taken_than_the_limit(server: CocoServer, tmp_path: Path) -> None:
    assert "more than 1000 are not taken" in refusal(server, tmp_path, limit=1000)


def test_a_body_of_unknown_length_is_taken_up_to_the_published_size(server: CocoServer, tmp_path: Path) -> None:
    server.behaviour = "endless"
    assert f"goes on after {len(CONTENT)} bytes" in refusal(server, tmp_path, pin=PIN)
    assert (tmp_path / "a.zip.partial").stat().st_size <= len(CONTENT)


def test_a_missing_file_is_one_line_that_says_what_to_do(server: CocoServer, tmp_path: Path) -> None:
    del server.files["zips/a.zip"]
    message = refusal(server, tmp_path)
    assert "404 Not Found (there is no such file)" in message
    assert f"put it there as {tmp_path / 'a.zip'}" in message
    assert "data.mirror" in message
    assert server.asked["zips/a.zip"] == 1


def test_a_refusal_after_a_busy_answer_is_final(server: CocoServer, tmp_path: Path) -> None:
    server.behaviour = "refuses"
    assert "403 Forbidden" in refusal(server, tmp_path)
    assert server.asked["zips/a.zip"] == 2


def test_a_server_that_is_not_there_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Server(address, pause=0) as source, pytest.raises(UserError) as caught:
            source.get("zips/a.zip", tmp_path / "a.zip")
    assert "cannot be reached (Connection refused), after 5 attempts: get it by hand" in str(caught.value)


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Server(address, timeout=(1, 0.1), pause=0) as source, pytest.raises(UserError, match="not answer in time"):
            source.get("zips/a.zip", tmp_path / "a.zip")


def test_contents_that_cannot_be_used_are_not_kept(server: CocoServer, tmp_path: Path) -> None:
    def check(file: Path) -> None:
        raise UserError(f"{file.name} is empty")

    assert "zips/a.zip: what came is of no use: a.zip.partial is empty" in refusal(server, tmp_path, check=check)
    assert list(tmp_path.iterdir()) == []


def test_the_bar_counts_bytes(server: CocoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.behaviour = "cut once"
    screen = StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(unit="B", unit_scale=True, file=screen) as bar:
        get(server, tmp_path, bar=bar)
        assert (bar.n, bar.total) == (len(CONTENT), len(CONTENT))
    assert "700k/700k" in screen.getvalue()
