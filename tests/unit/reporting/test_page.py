"""The page itself: it needs nothing but itself, and keyboards, screen readers and weak eyes can use it."""

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from made_up_run import write_run

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import CaptionRow, read_rows, write_rows
from t2i_feedback.reporting import before, page
from t2i_feedback.reporting.section import Settings
from t2i_feedback.stages import report

pytestmark = pytest.mark.slow  # draws the whole report again and again

TEXT, SHAPE = 4.5, 3.0  # WCAG 2.2, level AA: contrasts of text, and of what a control or a state is told by
ON = {  # colour -> the colours behind it
    "ink": ("paper", "tint", "good-tint", "bad-tint"),
    "soft": ("paper", "tint"),
    "link": ("paper", "tint"),
}
SHAPES = {"edge": ("paper", "tint"), "good": ("paper", "tint"), "bad": ("paper", "tint", "bad-tint")}


class Read(HTMLParser):
    """Every tag with its attributes, and the texts of the script and the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style") and self.lasttag not in self.texts:
            self.texts[self.lasttag] = data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]

    def classes(self, tag: str) -> Counter[str]:
        return Counter(name for attributes in self.all(tag) for name in attributes.get("class", "").split())


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)


def rendered(earlier: before.Before | None = None) -> str:
    return page.render(report.gather(load(Settings)), earlier)


def test_the_page_needs_nothing_but_itself() -> None:
    text = rendered()
    read = Read(text)
    names = ("src", "href", "srcset", "action", "data", "poster")
    addresses = [value for _, attributes in read.found for name, value in attributes.items() if name in names]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not {"link", "base", "iframe", "object", "form"} & {tag for tag, _ in read.found}
    assert not re.search(r"https?:|url\(|@import", text)


def test_the_policy_admits_this_style_and_this_script_and_no_other() -> None:
    read = Read(rendered())
    [content] = [meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    policy = dict(part.strip().split(" ", 1) for part in content.split(";"))
    digest = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for tag, text in read.texts.items()
    }
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest['style']}'",
        "script-src": f"'sha256-{digest['script']}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(read.all("script")) == len(read.all("style")) == 1
    refused = ("style", "on")  # the policy would not let these attributes work
    assert not [name for _, attributes in read.found for name in attributes if name.startswith(refused)]


def test_text_from_outside_is_escaped() -> None:
    rows = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    evil = '<script>alert(1)</script> & "quotes" \'><img src=x onerror=alert(1)>'
    write_rows(paths.EVALUATION_CAPTIONS, [row.model_copy(update={"caption": evil}) for row in rows])
    hostile = before.compared(evil, {evil: {"old": evil, "new": 1}}, {evil: {"old": 1.0, "new": 2.0}})
    text = rendered(hostile)
    read = Read(text)
    assert len(read.all("script")) == 1 and "alert(1)" not in read.texts["script"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;quotes&#34; &#39;&gt;&lt;img" in text
    assert "<img src=x" not in text
    assert any(image["alt"] == f"raw: {evil}" for image in read.all("img"))


def test_headings_descend_by_one_and_the_contents_name_every_section() -> None:
    read = Read(rendered(before.compared("a1b2c3", {"seed": {"old": 1, "new": 2}}, {})))
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in pairwise(levels))
    links = [link["href"] for link in read.all("a")]
    assert links == ["#main", *(f"#{section['id']}" for section in read.all("section"))]
    ids = [attributes["id"] for _, attributes in read.found if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_there_are_landmarks_a_language_and_a_way_past_the_contents() -> None:
    read = Read(rendered())
    assert read.all("html")[0]["lang"] == "en-GB"
    assert [len(read.all(tag)) for tag in ("nav", "header", "main", "footer", "dialog")] == [1] * 5
    assert [tag for tag, _ in read.found if tag in ("a", "button", "nav")][:2] == ["a", "nav"]
    assert read.all("nav")[0]["aria-label"] and read.all("dialog")[0]["aria-label"]


def test_every_image_has_a_text_and_enlarges() -> None:
    read = Read(rendered())
    images = read.all("img")
    assert images and all(image["alt"].strip() for image in images)
    assert read.classes("button")["enlarge"] == len(images)


def test_tables_of_alike_rows_sort_by_columns_and_the_arms_by_a_measure() -> None:
    read = Read(rendered())
    sorting = [header for header in read.all("th") if "aria-sort" in header]
    assert read.classes("button")["sort"] == len(sorting)
    assert Counter(header["scope"] for header in sorting)["col"] == 7 + 7 + 6 + 5 * 4  # stages, rounds, the paper's
    assert Counter(header["scope"] for header in sorting)["row"] > 10
    assert read.classes("table")["along"] == 1
    tables, captions = read.all("table"), read.all("caption")
    assert len(tables) == len(captions)
    held = [group for group in read.all("div") if group.get("class") == "scroll"]
    assert len(held) == len(tables) and all(group["aria-label"] for group in held)


def test_what_differs_from_the_run_before_is_there_when_it_is_given() -> None:
    assert "What differs from the run before" not in rendered()
    text = rendered(before.compared("a1b2c3 (Warmer)", {"seed": {"old": 1, "new": 2}}, {}))
    assert "The run before is a1b2c3 (Warmer)." in text
    assert "No headline number differs in the digits written." in text


# ------------------------------------------------------------------------------------------------ colours


def modes() -> dict[str, dict[str, str]]:
    """light, dark -> name of a colour -> its six hexadecimal digits."""
    blocks = re.findall(r":root \{(.*?)\}", page.STYLE.read_text(), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): #(\w{6});", block)) for block in blocks)
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula_of_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("000000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrasts_are_enough_in_both_modes(mode: str) -> None:
    colours = modes()[mode]
    assert colours.keys() == modes()["light"].keys()
    for pairs, least in ((ON, TEXT), (SHAPES, SHAPE)):
        for front, behind in pairs.items():
            found = {back: contrast(colours[front], colours[back]) for back in behind}
            assert min(found.values()) >= least, (mode, front, found)


def test_no_text_has_a_colour_whose_contrast_is_not_held() -> None:
    rules = re.sub(r":root \{.*?\}", "", page.STYLE.read_text(), flags=re.DOTALL)
    assert not re.search(r"#[0-9a-f]{3,8}\b", rules)
    icons = {"edge"}  # of the sort buttons: shapes beside the text
    assert set(re.findall(r"[; {]color: var\(--(\w+)\)", rules)) - icons <= set(ON)
    behind = set(re.findall(r"background: var\(--([\w-]+)\)", rules)) - {"card"}  # under plots only
    assert behind <= {back for backs in ON.values() for back in backs}
