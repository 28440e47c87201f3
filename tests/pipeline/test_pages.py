"""The pages in a real browser: from the first image to an adapter that was trained by what was scored."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import browser
from conftest import Clone
from playwright.sync_api import Page

from t2i_feedback.foundation.rows import EpochRow, read_rows
from t2i_feedback.rewards import human

PREFERENCE = "scenes at night"
SECONDS = 240  # for all of it


# The page's question for what is new takes a second, and says when it is on its way.
SLOW_STATE = """
const real = window.fetch;
window.fetch = async (path, ...rest) => {
  if (path !== "/state") return real(path, ...rest);
  window.asking = true;
  await new Promise((done) => setTimeout(done, 1000));
  window.asking = false;
  return real(path, ...rest);
};
"""


def serve(clone: Clone, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The program, and the address that it prints."""
    program = ["python", "-m", "t2i_feedback.tools.feedback", "--preference", PREFERENCE]
    process = subprocess.Popen(
        [*program, "--epochs", "2", "--questions", "4", *arguments],
        cwd=clone.folder,
        env=clone.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise AssertionError(f"it ended with {process.wait()}")


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(timeout=40)


def score_one(page: Page, key: str) -> None:
    shown = page.get_attribute("#image", "src")
    page.keyboard.press(key)
    page.wait_for_function(
        "was => document.querySelector('#image').getAttribute('src') !== was "
        "|| document.querySelector('#score').hidden",
        arg=shown,
    )


def until(page: Page, *selectors: str) -> str:
    """The first of the selectors to be visible."""
    start = time.monotonic()
    while time.monotonic() - start < SECONDS:
        for selector in selectors:
            if page.locator(selector).is_visible():
                return selector
        page.wait_for_timeout(100)
    raise AssertionError(f"none of {selectors} appeared:\n{page.locator('body').inner_text()}")


def test_a_person_trains_and_compares_in_a_browser(finished: Clone, tmp_path: Path) -> None:
    clone = Clone(shutil.copytree(finished.folder, tmp_path / "taste", symlinks=True))
    process, address = serve(clone)
    try:
        with browser.opened() as (page, errors):
            page.add_init_script(SLOW_STATE)
            page.goto(address)
            until(page, "#start")
            assert page.locator("#compare").is_hidden()  # the adapter that is there is of another preference
            page.wait_for_function("() => window.asking")
            page.locator("#start").click()  # is not lost
            until(page, "#score")
            assert "token" not in page.url and not browser.is_wider_than_its_window(page)
            score_one(page, "9")
            page.keyboard.press("u")  # taken back
            page.wait_for_function("() => document.querySelector('#progress').textContent.includes('4 left')")
            first = page.get_attribute("#image", "src")
            page.keyboard.press("s")  # comes last
            assert page.get_attribute("#image", "src") != first
            page.keyboard.press("p")
            assert page.locator("#prompt").is_visible()
            for key in ("0", "2", "8"):
                score_one(page, key)
            assert page.get_attribute("#image", "src") == first
            assert errors == []
        end(process)  # the page and the program are gone in the middle of an epoch
        process, address = serve(clone)
        with browser.opened(browser.PHONE) as (page, errors):
            page.goto(address)
            until(page, "#score")
            assert page.get_attribute("#image", "src") == first and not browser.is_wider_than_its_window(page)
            page.locator("#slider").fill("3.7")
            page.locator("#give").click()  # the last of the epoch: training begins by itself
            until(page, "#log")
            until(page, "#score")
            for key in ("1", "9", "5", "7"):
                score_one(page, key)
            until(page, "#draw")
            page.locator("#draw").click()
            until(page, "#compare")
            assert not browser.is_wider_than_its_window(page)
            while until(page, "#compare", "#tally") == "#compare":
                shown = page.get_attribute("#left img", "src")
                page.keyboard.press("ArrowLeft")
                page.wait_for_function(
                    "was => document.querySelector('#left img').getAttribute('src') !== was "
                    "|| document.querySelector('#compare').hidden",
                    arg=shown,
                )
            assert "95 % interval" in page.locator("#tally").inner_text()
            assert errors == []
    finally:
        end(process)
    history = read_rows(clone.folder / "models/lora/history.jsonl", EpochRow)
    assert [row.asked for row in history] == [4, 4]
    lines = human.sheet_of(PREFERENCE, clone.folder / "feedback").read()
    assert sorted(line.score for line in lines.values()) == [1.0, 2.0, 3.7, 5.0, 7.0, 8.0, 9.0, 10.0]


def choose_one(page: Page, key: str) -> None:
    """Answers about two images, and waits for what comes then."""
    shown = page.evaluate("() => [...document.querySelectorAll('.pair img')].map(image => image.src).join()")
    page.keyboard.press(key)
    page.wait_for_function(
        "was => [...document.querySelectorAll('.pair img')].map(image => image.src).join() !== was "
        "|| document.querySelector('#compare').hidden",
        arg=shown,
    )


def test_a_person_compares_two_images_of_a_prompt_and_tries_another(finished: Clone, tmp_path: Path) -> None:
    clone = Clone(shutil.copytree(finished.folder, tmp_path / "pairs", symlinks=True))
    process, address = serve(clone, "--pairs")
    sheet = human.sheet_of(PREFERENCE, clone.folder / "feedback")
    try:
        with browser.opened() as (page, errors):
            page.goto(address)
            until(page, "#start")
            page.locator("#start").click()
            until(page, "#compare")  # the training ended for want of scores
            assert page.locator("#score").is_hidden() and not browser.is_wider_than_its_window(page)
            assert page.locator("#caption").is_hidden()
            page.keyboard.press("p")
            assert page.locator("#caption").inner_text() == sheet.read()[sheet.asked()[0]].prompt
            first = page.get_attribute("#left img", "src")
            page.keyboard.press("s")  # the other prompt first
            assert page.get_attribute("#left img", "src") != first
            page.keyboard.press("s")
            assert page.get_attribute("#left img", "src") == first
            choose_one(page, "ArrowLeft")
            winner = sheet.read()[first.rpartition("/")[2]].score
            assert winner is not None and winner > 7
            page.keyboard.press("u")
            page.wait_for_function("() => document.querySelector('#progress').textContent.includes('4 left')")
            assert page.get_attribute("#left img", "src") == first
            choose_one(page, "ArrowRight")
            page.keyboard.press("t")  # one at a time
            until(page, "#score")
            assert "2 left, 2 scored" in page.locator("#progress").inner_text()
            page.keyboard.press("t")
            page.goto(address.partition("?")[0] + "try")
            page.locator("#text").fill("<b>a large red circle at night</b>")
            assert page.locator("#adapter").is_hidden()  # none is there while one is being trained
            page.locator("#go").click()
            until(page, "#rounds li:nth-child(1) img")
            page.wait_for_function("() => !document.querySelector('#go').disabled", timeout=1000 * SECONDS)
            assert page.locator("#asked").inner_text() == "“<b>a large red circle at night</b>”"
            assert page.locator("#rounds li.kept").count() == 1 and page.locator("#problem").is_hidden()
            page.wait_for_function("() => [...document.images].every(image => image.naturalWidth > 0)")
            page.locator("#text").fill("  ")
            page.locator("#go").click()
            until(page, "#problem")
            assert page.locator("#problem").inner_text() == "type what the image is to show"
            assert [error for error in errors if "422" not in error] == []
        with browser.opened(browser.PHONE) as (page, errors):
            page.goto(address.partition("?")[0] + "try?token=wrong")
            assert "open the whole address" in page.locator("body").inner_text()
            page.goto(address)
            until(page, "#compare")
            assert not browser.is_wider_than_its_window(page)
            page.locator("#neither").click()  # the last of the epoch: training begins by itself
            until(page, "#log")
            until(page, "#compare")
            for key in ("ArrowLeft", "ArrowUp"):
                choose_one(page, key)
            until(page, "#draw")
            page.goto(address.partition("?")[0] + "try")
            until(page, "#adapter")
            page.locator("#text").fill("a large red circle at night")
            page.keyboard.press("Enter")
            until(page, "#rounds li:nth-child(1) img")
            page.wait_for_function("() => !document.querySelector('#go').disabled", timeout=1000 * SECONDS)
            assert page.locator("#problem").is_hidden()
            assert not browser.is_wider_than_its_window(page)
            assert [error for error in errors if "401" not in error] == []
    finally:
        end(process)
    history = read_rows(clone.folder / "models/lora/history.jsonl", EpochRow)
    assert [row.asked for row in history] == [4, 4]
    scores = sorted(round(line.score, 1) for line in sheet.read().values())
    assert scores == [3.9, 3.9, 5.5, 5.5, 5.5, 5.5, 7.1, 7.1]


def test_a_prompt_and_the_report_are_shown_without_errors(finished: Clone) -> None:
    clone = finished
    printed = clone.run("python", "-m", "t2i_feedback.tools.improve", "<b>a red house</b>", "--rounds", "2").stdout
    improved = clone.folder / re.search(r"improved/\S+/index\.html", printed)[0]
    for viewport in (browser.WIDE, browser.PHONE):
        with browser.opened(viewport) as (page, errors):
            page.goto(improved.as_uri())
            assert page.locator("h2").inner_text() == "<b>a red house</b>"
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            assert not browser.is_wider_than_its_window(page)
            page.goto((finished.folder / "metrics/report.html").as_uri())
            assert page.locator("h1").count() == 1
            assert page.evaluate("[...document.images].every(image => image.alt)")
            assert errors == []


def test_a_gallery_shows_an_experiment_beside_the_workspace(finished: Clone, tmp_path: Path) -> None:
    clone = Clone(shutil.copytree(finished.folder, tmp_path / "gallery", symlinks=True))
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "finished")
    experiment = ["dvc", "exp", "run", "--temp", "--name", "stronger", "--set-param", "model.guidance=3"]
    clone.run(*experiment, "generate@raw")
    program = ["python", "-m", "t2i_feedback.tools.gallery"]
    refused = clone.run(*program, "nobody", check=False)
    assert refused.returncode == 1 and "RUNS: no experiment, branch or commit is called 'nobody'" in refused.stdout
    printed = clone.run(*program, "workspace", "stronger", "--captions", "10").stdout
    assert "14 of 24 captions are left out" in printed and "10 captions, 12 arms" in printed
    with browser.opened() as (page, errors):
        address = (clone.folder / "gallery.html").as_uri()
        page.goto(address)
        assert page.locator(".row").count() == 10 and page.locator(".row").first.locator("figure").count() == 12
        page.wait_for_function("() => document.querySelector('.row img').naturalWidth === 64")
        page.locator("#sort").select_option("alignment")
        page.locator("#text").fill("a")
        kept = page.locator(".row").count()
        page.locator(".row button").last.click()
        page.locator("#mode").select_option("difference")
        page.locator("#zoom").fill("2")
        view, caption = page.url, page.locator("#closer-caption").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("#closer").is_hidden()
        page.goto("about:blank")
        page.goto(view)  # a permalink
        assert page.locator("#closer-caption").inner_text() == caption and page.locator(".difference").count() == 1
        assert page.locator(".row").count() == kept
        page.goto("about:blank")
        page.goto(address + "#left=99&mode=<b>&open=nothing&__proto__=1")
        assert page.locator(".row").count() == 10 and page.locator("#closer").is_hidden()
        page.set_viewport_size(browser.PHONE)
        assert not browser.is_wider_than_its_window(page)
        assert errors == []
