"""make gallery: what it keeps, what it says that it left out, and that nothing from a run can act on the page."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import browser
import pytest
from PIL import Image

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import save_png
from t2i_feedback.foundation.rows import CaptionRow, EvaluationRow, ImageRow, write_rows
from t2i_feedback.tools.gallery import __main__ as gallery
from t2i_feedback.tools.gallery import page
from t2i_feedback.tools.gallery.collecting import HERE, collect

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms of six captions; of caption 0 both drew the same image."""
    monkeypatch.chdir(tmp_path)
    draw(64)
    return tmp_path


def draw(side: int, captions: int = 6) -> None:
    rows = [CaptionRow(caption_id=i, image_id=i, caption=f"{HOSTILE} {i}", image="") for i in range(captions)]
    write_rows(paths.EVALUATION_CAPTIONS, rows)
    for shade, arm in enumerate(("raw", "enhanced")):
        folder = paths.arm(arm)
        drawn = [ImageRow(caption_id=i, round=1, prompt=HOSTILE, image=f"images/{i}.png") for i in range(captions)]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for row in drawn:
            colour = (row.caption_id, shade * row.caption_id, 0)
            save_png(Image.new("RGB", (side, side), colour), folder / row.image, {})
        write_rows(folder / "images.jsonl", drawn)
        write_rows(folder / "rounds.jsonl", drawn)


def data(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])


def test_equal_images_are_kept_once_and_nothing_acts(run: Path) -> None:
    collection = collect([HERE], None)
    assert (len(collection.captions), len(collection.columns), len(collection.images)) == (6, 2, 11)
    html = page.write(collection, Path("gallery.html"))[0].read_text()
    assert "<script>alert" not in html and html.count("<script") == 2
    found = data(html)
    assert found["captions"][3]["text"] == f"{HOSTILE} 3" and found["cells"][0][0]["prompt"] == HOSTILE
    assert found["cells"][0][0]["image"] == found["cells"][1][0]["image"]
    assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", html)  # no network


def test_what_is_left_out_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = collect([HERE], 4)
    assert list(collection.captions) == [0, 1, 2, 3] and collection.left_out[0].startswith("2 of 6 captions are left")
    assert collection.left_out[0] in page.write(collection, Path("gallery.html"))[0].read_text()
    monkeypatch.setattr(page, "MOST", 2000)
    path, size = page.write(collect([HERE], None), Path("gallery.html"))
    assert path == Path("gallery/index.html") and "images lie beside the page" in path.read_text()
    images = data(path.read_text())["images"].values()
    assert len(images) == 11 and all((path.parent / name).is_file() for name in images)
    assert size == sum(file.stat().st_size for file in Path("gallery").rglob("*") if file.is_file())


def test_captions_that_not_all_arms_have_are_said(run: Path) -> None:
    images = paths.arm("raw") / "images.jsonl"
    images.write_text("".join(images.read_text().splitlines(keepends=True)[:5]))
    collection = collect([HERE], 4)
    assert list(collection.captions) == [0, 1, 2, 3]
    assert collection.left_out == [
        "Left out, as not all arms and runs have them: 1 captions.",
        "1 of 5 captions are left out (CAPTIONS=).",
    ]


def call(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command] if command[0] == "dvc" else command, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["data/arms/raw", "data/evaluation/raw"])
def test_a_revision_is_read_from_the_cache_alone(run: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """A folder that the cache lost is one line: the remote that has it is not asked, and no arm or score is dropped."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(run / "index"))
    paths.PIPELINE.write_text("stages: {}\n")
    measured = paths.evaluation("raw") / "per_image.jsonl"
    measured.parent.mkdir(parents=True)
    numbers = {"brightness": 1, "contrast": 1, "sharpness": 1, "rounds": 1}
    unmeasured = ("alignment", "whole", "judge_score", "held_out_score", "p_yes", "accepted")
    write_rows(measured, [EvaluationRow(caption_id=0, **numbers, **dict.fromkeys(unmeasured))])
    call("git", "init", "--quiet")
    call("dvc", "init", "--quiet")
    call("dvc", "remote", "add", "--quiet", "--default", "elsewhere", str(run / "remote"))
    call("dvc", "add", "--quiet", "data/dataset", "data/arms/raw", "data/arms/enhanced", "data/evaluation/raw")
    call("dvc", "push", "--quiet")
    call("git", "add", "--all", "data", ".dvc", "dvc.yaml")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    call("git", *author, "commit", "--quiet", "--message", "drawn")
    noted = re.search("md5: (.*)", Path(f"{lost}.dvc").read_text())[1]
    shutil.rmtree("data/arms/raw")  # the workspace is not what is read
    whole = collect(["HEAD"], None)
    assert len(whole.columns) == 2 and len(whole.columns[0].measured) == 1
    (Path(".dvc/cache/files/md5") / noted[:2] / noted[2:]).unlink()
    shutil.rmtree("index")
    with pytest.raises(UserError, match=f"RUNS: HEAD has no {lost}/.* in this machine's DVC cache"):
        collect(["HEAD"], None)


def test_fewer_captions_of_large_images(run: Path) -> None:
    draw(264, 66)
    assert len(collect([HERE], None).captions) == 64


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="RUNS: workspace has no"):
        collect([HERE], None)
    draw(64)
    (paths.arm("raw") / "images/2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        collect([HERE], None)
    for wrong, said in (("--captions=0", "CAPTIONS: '0' is not"), ("--out=x.pdf", "OUT: x.pdf")):
        monkeypatch.setattr("sys.argv", ["gallery", wrong])
        with pytest.raises(UserError, match=said):
            gallery.main()


@pytest.mark.slow
def test_images_of_a_caption_are_seen_together(run: Path) -> None:
    """The next caption is the next of those shown; all windows zoom and scroll as one; an address keeps the view."""
    address = page.write(collect([HERE], None), Path("gallery.html"))[0].absolute().as_uri()
    with browser.opened() as (opened, errors):
        opened.goto(f"{address}#text=4&open=4")
        opened.locator("#closer-caption").click()
        opened.keyboard.press("ArrowDown")
        assert opened.locator("#closer-caption").inner_text() == f"{HOSTILE} 4"  # 5 is not shown
        opened.locator("#wipe").fill("20")
        opened.goto("about:blank")
        opened.go_back()
        assert opened.locator("#wipe").input_value() == "20"
        opened.locator("#mode").select_option("all")
        opened.locator("#zoom").fill("3")
        opened.locator(".pane").first.evaluate("pane => pane.scrollTo(30, 40)")
        together = "() => [...document.querySelectorAll('.pane')].every(p => p.scrollLeft === 30 && p.scrollTop === 40)"
        opened.wait_for_function(together)
        assert opened.locator(".pane").count() == 2
        opened.goto("about:blank")
        opened.goto(f"{address}#open=4&zoom=none&wipe=9999")
        assert (opened.locator("#zoom").input_value(), opened.locator("#wipe").input_value()) == ("1", "100")
        opened.set_viewport_size(browser.PHONE)
        assert not browser.is_wider_than_its_window(opened)
        assert errors == []
