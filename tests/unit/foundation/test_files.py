"""Files are whole or not there, locks are waited for, large files are not loaded, and damaged ones are told."""

import hashlib
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from t2i_feedback.foundation import checkpoints, files, hub, images
from t2i_feedback.foundation.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    files.write_text(path, "before")

    def fail_half_way() -> None:
        with files.whole(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert [file.read_text() for file in path.parent.iterdir()] == ["before"]


def test_two_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    with files.whole(tmp_path / "file") as one, files.whole(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() in ("one", "other")


def test_bytes_and_name_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    files.write_text(tmp_path / "file", "x")
    assert re.fullmatch(rf"{tmp_path}/\.file\.\w+\.partial {tmp_path}", " ".join(synced))


HOLDER = """
import sys, time
from pathlib import Path
from t2i_feedback.foundation import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1)
    Path(sys.argv[2]).write_text("done")
"""


@pytest.mark.slow
def test_a_lock_that_another_process_has_is_waited_for_and_told_once(tmp_path: Path, capsys) -> None:
    lock, done = tmp_path / "lock", tmp_path / "done"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDER, str(lock), str(done)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with files.locked(lock, "waiting for the other"):
            assert done.read_text() == "done"
    assert capsys.readouterr().out == "waiting for the other\n"
    with files.locked(lock, "waiting for the other"):
        assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = "import os, sys; from pathlib import Path; from t2i_feedback.foundation import files\n"
    script += "with files.locked(Path(sys.argv[1])): os._exit(9)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script, str(lock)], env=environment).returncode == 9
    with files.locked(lock):
        pass


def test_a_large_file_is_not_loaded_to_be_hashed(tmp_path: Path) -> None:
    large = tmp_path / "weights.safetensors"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    digest = files.digest(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(digest) == 64 and files.digest(tmp_path) != digest


def png(path: Path) -> Path:
    images.save_png(Image.effect_noise((64, 64), 90).convert("RGB"), path, {"prompt": "a fish"})
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_an_image_that_was_cut_short_is_as_good_as_not_there(tmp_path: Path, share: float, capsys) -> None:
    path = png(tmp_path / "image.png")
    assert images.about_png(path) == {"prompt": "a fish"}
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert images.about_png(path) == {}
    assert "is damaged, and is made again" in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"{path} cannot be read"):
        images.open_rgb(path)


def test_an_image_with_a_flipped_bit_is_as_good_as_not_there(tmp_path: Path) -> None:
    path = png(tmp_path / "image.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    assert images.about_png(path) == {}


def test_an_image_that_is_not_there_is_no_damage(tmp_path: Path, capsys) -> None:
    assert images.about_png(tmp_path / "none.png") == {}
    assert capsys.readouterr().err == ""


def test_a_model_that_cannot_be_had_is_one_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    assert hub.why("a b", "main", errors.HFValidationError("x")) == (
        "is neither a folder here nor a name that the hub could have (owner/name)"
    )
    wrapped = OSError("transformers says something long")
    wrapped.__cause__ = errors.LocalEntryNotFoundError("x")
    assert "`hf download owner/name --revision v1`" in hub.why("owner/name", "v1", wrapped)
    assert "the hub cannot be reached" in hub.why("owner/name", "v1", wrapped)
    assert "could not be fetched or read (no weights)" in hub.why("owner/name", "v1", OSError("no weights"))


def test_a_checkpoint_that_was_replaced_is_read_again_whatever_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives of one architecture have files of one size, and often one time."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    weights = tmp_path / "model.safetensors"
    found = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        os.utime(weights, (0, 0))
        found.append(checkpoints.digest(weights))
    assert found == [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]
