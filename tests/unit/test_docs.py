"""The pages: links lead somewhere, commands and keys exist, and README's figures are those of the committed run."""

import re
from pathlib import Path

import readme
import yaml

from t2i_feedback.foundation import params

REPOSITORY = readme.REPOSITORY
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KEYS = re.compile(r"-S '?([a-z_][a-z0-9_.-]*)=")


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are linked to."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {one for one in named if one[1] not in targets} == set()


def test_every_key_that_a_command_changes_exists() -> None:
    known = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    unknown = []
    for page in PAGES:
        if page.name != "your-own-experiment.md":  # which adds keys of its own, and is run by a test
            found = KEYS.findall(page.read_text(encoding="utf-8"))
            unknown += [
                f"{page.name}: {key}" for key in found if params.at(known, key) is None and not _is_null(known, key)
            ]
    assert unknown == []


def _is_null(tree: dict, dotted: str) -> bool:
    section, _, key = dotted.rpartition(".")
    found = params.at(tree, section) if section else tree
    return isinstance(found, dict) and key in found


def test_every_page_of_docs_is_reached_from_readme() -> None:
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= {
        link.partition("#")[0] for link in LINK.findall(PAGES[0].read_text(encoding="utf-8"))
    } | {"docs/numbers.md"}


def test_readme_is_short_and_holds_the_figures_of_the_committed_run() -> None:
    text = readme.README.read_text(encoding="utf-8")
    numbers, over_seeds = readme.figures()
    found, minutes = readme.BLOCK.search(text), readme.MINUTES.search(text)
    assert found and minutes
    assert found[0] == readme.results(numbers, over_seeds, minutes[1])
    assert [claim for claim, holds in readme.holds(numbers).items() if not holds] == []
    assert len(text.splitlines()) <= 150


def test_no_page_is_unfinished() -> None:
    assert [page.name for page in PAGES if re.search(r"@[A-Z]+@|TODO|FIXME", page.read_text(encoding="utf-8"))] == []
