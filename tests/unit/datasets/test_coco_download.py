"""MS-COCO's files from a server of its official layout, through the data stage as a user starts it."""

import fcntl
import functools
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import workplaces
from coco_server import CocoServer, captions, dataset, jpeg, zipped
from PIL import Image

from t2i_feedback.datasets import coco, coco_download, download
from t2i_feedback.datasets.coco_download import PUBLISHED
from t2i_feedback.datasets.download import Pin
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, read_rows
from t2i_feedback.stages.data import main

pytestmark = pytest.mark.slow  # needs servers

REPOSITORY = Path(__file__).parents[3]
KEPT = Path(".cache/coco")
ANNOTATIONS = "annotations/annotations_trainval2014.zip"
SPLITS = {"train2014": range(100, 112), "val2014": range(1, 15)}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CocoServer]:
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with CocoServer(dataset()).running() as running:
        yield running


def write_params(server: CocoServer, **changes: object) -> None:
    raw = workplaces.ours()
    raw["data"] |= {"source": "coco", "fetch": "images", "mirror": server.address, "checksums": "first"}
    raw["data"] |= {"train_split": "train2014", "val_split": "val2014", "caption": "random"}
    raw["data"] |= {"finetune_captions": 8, "evaluation_captions": 6, "reference_images": 10} | changes
    raw["evaluate"] |= {"kid_subset": 4, "neighbourhood": 3, "splits": 2}
    workplaces.furnish(raw, models=False)


def run(server: CocoServer, **changes: object) -> list[CaptionRow]:
    """The data stage; its rows for fine-tuning and for reference."""
    write_params(server, **changes)
    main()
    return [row for file in (paths.FINETUNE_CAPTIONS, paths.REFERENCE_CAPTIONS) for row in read_rows(file, CaptionRow)]


def refusal(server: CocoServer, **changes: object) -> str:
    before = outside()
    with pytest.raises(UserError) as caught:
        run(server, **changes)
    assert "\n" not in str(caught.value)
    assert outside() == before | {"params.yaml"}
    assert not paths.DATASET.exists()
    return str(caught.value)


def outside() -> set[str]:
    """The files that are not among the downloads, a stage's unfinished work or what makes the place one."""
    files = (str(file) for file in Path().rglob("*") if file.is_file())
    return {file for file in files if not file.startswith((".cache/", "data/checked/", "src/", "dvc.yaml"))}


def images_asked(server: CocoServer) -> list[str]:
    return [name for name in server.asked if name.endswith(".jpg")]


def as_published(server: CocoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's archives of now are the official ones."""
    for name, content in server.files.items():
        if name.endswith(".zip"):
            pin = Pin(len(content), hashlib.sha256(content).hexdigest(), coco_download.PUBLISHER)
            monkeypatch.setitem(coco_download.PUBLISHED, name, pin)


# ------------------------------------------------------------------------------------------------ what it gets


def test_the_images_that_the_run_needs_come_one_by_one_and_no_others(server: CocoServer) -> None:
    rows = run(server)
    assert len(images_asked(server)) == len(rows) == 18
    assert server.asked[ANNOTATIONS] == 1
    assert not [name for name in server.asked if name.startswith("zips/")]
    for row in rows:
        split = "train2014" if row.image_id >= 100 else "val2014"
        original = server.files[f"{split}/COCO_{split}_{row.image_id:012d}.jpg"]
        assert (paths.DATASET / row.image).read_bytes() == original


def test_archives_give_the_same_data_set(server: CocoServer) -> None:
    one_by_one = run(server)
    assert run(server, fetch="zip", downloads=".cache/other") == one_by_one
    assert server.asked["zips/val2014.zip"] == server.asked["zips/train2014.zip"] == 1
    assert len(images_asked(server)) == 18


def test_a_folder_that_is_there_already_gives_the_same_data_set(server: CocoServer) -> None:
    fetched = run(server)
    server.asked.clear()
    assert run(server, fetch="none", path=str(KEPT)) == fetched
    assert not server.asked


def test_a_second_run_asks_for_nothing(server: CocoServer) -> None:
    first = run(server)
    server.asked.clear()
    assert run(server) == first
    assert not server.asked


def test_a_larger_run_asks_for_the_rest(server: CocoServer) -> None:
    run(server)
    server.asked.clear()
    run(server, reference_images=12)
    assert len(server.asked) == 2


def test_a_folder_of_ones_own_is_filled_up(server: CocoServer) -> None:
    mine = Path("mine")
    for name, content in server.files.items():
        if "/COCO_" in name and int(name[-6:-4]) % 2:
            (mine / name).parent.mkdir(parents=True, exist_ok=True)
            (mine / name).write_bytes(content)
    (mine / "annotations").mkdir()
    for split, ids in SPLITS.items():
        (mine / f"annotations/captions_{split}.json").write_bytes(captions(split, ids))
    run(server, downloads="mine")
    assert ANNOTATIONS not in server.asked
    assert {int(name[-6:-4]) % 2 for name in images_asked(server)} == {0}


def test_an_archive_that_was_put_there_by_hand_is_used(server: CocoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    as_published(server, monkeypatch)
    KEPT.mkdir(parents=True)
    for name in [name for name in server.files if name.endswith(".zip")]:
        (KEPT / Path(name).name).write_bytes(server.files[name])
    run(server, fetch="zip", checksums="published")
    assert not server.asked


def test_no_more_images_are_under_way_than_connections(server: CocoServer) -> None:
    server.behaviour = "slow"
    run(server, connections=3)
    assert server.most_at_once == 3


def test_fine_tuning_captions_come_from_the_train_split_and_the_others_from_the_validation_split(
    server: CocoServer,
) -> None:
    run(server)
    finetune = read_rows(paths.FINETUNE_CAPTIONS, CaptionRow)
    reference = read_rows(paths.REFERENCE_CAPTIONS, CaptionRow)
    assert all(row.caption.startswith("train2014 ") for row in finetune)
    assert all(row.caption.startswith("val2014 ") for row in reference)


def test_the_official_archives_are_pinned() -> None:
    """The figures of TensorFlow Datasets, url_checksums/coco.txt, in bytes."""
    assert {Path(name).stem: pin.size for name, pin in PUBLISHED.items()} == {
        "annotations_trainval2014": 252872794,
        "annotations_trainval2017": 252907541,
        "train2014": 13510573713,
        "val2014": 6645013297,
        "train2017": 19336861798,
        "val2017": 815585330,
    }
    assert {len(pin.sha256) for pin in PUBLISHED.values()} == {64}


# ------------------------------------------------------------------------------------------------ interrupted


def test_images_that_came_before_a_failure_are_kept(server: CocoServer) -> None:
    whole = dict(server.files)
    for name in [name for name in server.files if name.startswith("train2014/")]:
        del server.files[name]
    assert "404" in refusal(server)
    server.files.update(whole)
    server.asked.clear()
    assert len(run(server)) == 18
    assert len(images_asked(server)) == 8


def test_a_broken_connection_changes_nothing(server: CocoServer) -> None:
    server.behaviour = "cut once"
    assert len(run(server, fetch="zip")) == 18
    assert sorted(path.name for path in KEPT.rglob("*.partial")) == []


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_while_an_archive_comes_goes_on_with_it(server: CocoServer, ended_by: int) -> None:
    notes = {f"annotations/captions_{split}.json": captions(split, ids) for split, ids in SPLITS.items()}
    filler = {"annotations/instances_val2014.json": random.Random(1).randbytes(6_000_000)}
    server.files[ANNOTATIONS] = zipped(notes | filler)
    server.behaviour = "trickle"
    write_params(server)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "t2i_feedback.stages.data"]
    partial = KEPT / "annotations_trainval2014.zip.partial"
    # as in a terminal: a shell has its background jobs ignore SIGINT, and what they start inherits that
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        until = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(ended_by)
        said = running.communicate(timeout=60)[1]
    assert partial.stat().st_size < len(server.files[ANNOTATIONS])
    if ended_by == signal.SIGINT:
        assert said.splitlines()[-1] == "data: interrupted; what was done is kept, and the same command takes it up."
    server.behaviour = "ranges"
    assert len(run(server)) == 18
    assert len(server.ranges) == 1


def test_two_processes_fill_a_folder_one_after_the_other(
    server: CocoServer, capsys: pytest.CaptureFixture[str]
) -> None:
    KEPT.mkdir(parents=True)
    with (KEPT / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.5, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        run(server)
    assert "waiting for another process that fills" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ what it is held to


def test_archives_that_are_not_the_official_ones_are_refused(server: CocoServer) -> None:
    message = refusal(server, checksums="published")
    assert ANNOTATIONS in message
    assert "but the file that TensorFlow Datasets publishes has 252872794" in message


def test_an_official_archive_passes(server: CocoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    as_published(server, monkeypatch)
    assert len(run(server, fetch="zip", checksums="published")) == 18


def test_an_archive_of_the_right_length_with_other_bytes_is_refused(
    server: CocoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_published(server, monkeypatch)
    server.files[ANNOTATIONS] = bytes(len(server.files[ANNOTATIONS]))
    assert "is not the file that TensorFlow Datasets publishes" in refusal(server, checksums="published")


def test_an_archive_put_there_by_hand_that_is_not_the_official_one_is_refused(
    server: CocoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_published(server, monkeypatch)
    KEPT.mkdir(parents=True)
    (KEPT / "annotations_trainval2014.zip").write_bytes(zipped({"a": b"a"}))
    message = refusal(server, checksums="published")
    assert "coco/annotations_trainval2014.zip is not the file that TensorFlow Datasets publishes" in message


def test_what_came_first_is_recorded(server: CocoServer) -> None:
    run(server)
    rows = [json.loads(line) for line in (KEPT / "downloads.jsonl").read_text().splitlines()]
    assert len(rows) == 18 + 1 + 2  # images, the archive, two captions files
    for row in rows:
        content = (KEPT / row["name"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_an_image_that_comes_again_must_be_the_first_one(server: CocoServer) -> None:
    run(server)
    for file in (KEPT / "val2014").iterdir():
        file.unlink()
        server.files[f"val2014/{file.name}"] = jpeg(200)
    with pytest.raises(UserError, match=r"is .* the file that came first \(.*downloads.jsonl holds it"):
        run(server)


def test_an_image_that_changed_on_disk_is_named(server: CocoServer) -> None:
    run(server)
    for file in (KEPT / "val2014").iterdir():
        file.write_bytes(jpeg(200))
    with pytest.raises(UserError, match=r"val2014/COCO_.* is not the file that came first"):
        run(server)


# ------------------------------------------------------------------------------------------------ hostile


@pytest.mark.parametrize("name", ["../../../evil.jpg", "/tmp/evil.jpg"])
def test_an_image_name_that_leads_elsewhere_is_refused(server: CocoServer, name: str) -> None:
    content = json.loads(captions("val2014", range(1, 15)))
    content["images"][3]["file_name"] = name
    notes = {
        "annotations/captions_train2014.json": captions("train2014", range(100, 112)),
        "annotations/captions_val2014.json": json.dumps(content).encode(),
    }
    server.files[ANNOTATIONS] = zipped(notes)
    assert "image 4: the image file" in refusal(server)
    assert not images_asked(server)


@pytest.mark.parametrize("evil", ["../evil", "/tmp/evil"])
def test_an_archive_with_a_name_that_leads_elsewhere_is_refused(server: CocoServer, evil: str) -> None:
    server.files[ANNOTATIONS] = zipped({"annotations/captions_val2014.json": b"{}", evil: b"evil"})
    assert f"member {evil!r}: the file" in refusal(server)
    assert not (KEPT / "annotations_trainval2014.zip").exists()


def test_a_page_instead_of_an_archive_is_named_with_its_address_and_not_kept(server: CocoServer) -> None:
    server.files[ANNOTATIONS] = b"<html>Please log in</html>"
    message = refusal(server)
    assert message.startswith(f"{server.address}/{ANNOTATIONS}: what came is of no use: ")
    assert "is not a zip archive" in message
    assert [file.name for file in KEPT.iterdir()] == [".lock"]


def test_an_image_folder_that_leads_elsewhere_is_not_written_through(server: CocoServer, here: Path) -> None:
    content = json.loads(captions("val2014", range(1, 15)))
    for image in content["images"]:
        image["file_name"] = f"link/{image['file_name']}"
    (KEPT / "annotations").mkdir(parents=True)
    (KEPT / "annotations/captions_val2014.json").write_text(json.dumps(content))
    (KEPT / "val2014").mkdir()
    (here / "elsewhere").mkdir()
    (KEPT / "val2014/link").symlink_to(here / "elsewhere")
    assert "is outside the image folder" in refusal(server)
    assert list((here / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>Please log in</html>", "is not an image of a known format"),
        (b"", "is empty"),
        (jpeg(3, side=400)[:-700], "cannot be read"),
    ],
)
def test_an_image_that_is_none_is_named_with_its_address_and_not_kept(
    server: CocoServer, content: bytes, complaint: str
) -> None:
    server.files |= {name: content for name in server.files if name.startswith("val2014/")}
    message = refusal(server)
    assert complaint in message
    assert f"{server.address}/val2014/COCO_val2014_" in message
    assert list((KEPT / "val2014").glob("*.jpg")) == []


def test_an_image_that_is_a_bomb_is_named(server: CocoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert "is too large" in refusal(server)


def test_an_image_of_too_many_bytes_is_not_taken(server: CocoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_download, "IMAGE_BYTES", 100)
    assert "more than 100 are not taken" in refusal(server)


def test_unusual_images_come_as_upright_rgb(server: CocoServer) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    unusual = [Image.new(mode, (30, 20), 1) for mode in ("L", "CMYK", "RGB")] + [Image.new("RGB", (6000, 4))]
    names = [name for name in server.files if name.startswith("val2014/")]
    for number, name in enumerate(names):
        file = io.BytesIO()
        image = unusual[number % 4].copy()
        image.putpixel((number, 0), 200 if image.mode == "L" else (200,) * len(image.getbands()))
        image.save(file, "JPEG", quality=95, exif=exif if number % 4 == 2 else b"")
        server.files[name] = file.getvalue()
    run(server)
    sizes = set()
    for row in read_rows(paths.REFERENCE_CAPTIONS, CaptionRow):
        with Image.open(paths.DATASET / row.image) as image:
            assert image.mode == "RGB"
            sizes.add(image.size)
    assert sizes == {(30, 20), (20, 30), (6000, 4)}


# ------------------------------------------------------------------------------------------------ the reader's own run


def test_no_server_is_one_line_on_the_screen_that_says_what_to_do(server: CocoServer) -> None:
    write_params(server, mirror="http://127.0.0.1:9")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    code = "import t2i_feedback.datasets.download as d; d.ATTEMPTS = 1\n"
    code += "from t2i_feedback.foundation import running\nfrom t2i_feedback.stages import data\nrunning.run(data.main)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("data: ")]
    assert len(lines) == 1
    assert "cannot be reached (Connection refused), after 1 attempt: get it by hand and put it there as " in lines[0]


def test_a_run_that_fetches_nothing_loads_no_http_library() -> None:
    raw = workplaces.ours()
    raw["data"] |= {"finetune_captions": 8, "evaluation_captions": 6, "reference_images": 10}
    raw["evaluate"] |= {"kid_subset": 4, "neighbourhood": 3, "splits": 2}
    workplaces.furnish(raw, models=False)
    code = "import sys\nfrom t2i_feedback.stages import data\ndata.main()\n"
    code += "print([name for name in ('requests', 'urllib3', 'httpx', 'aiohttp') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_came_is_ordinary_coco(server: CocoServer) -> None:
    run(server)
    assert [image.image_id for image in coco.read(KEPT, "val2014")] == list(range(1, 15))
