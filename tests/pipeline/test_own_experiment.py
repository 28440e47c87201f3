"""docs/your-own-experiment.md, run block by block in a clone: what the page says is what happens."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Clone

PAGE = Path(__file__).parents[2] / "docs/your-own-experiment.md"


def section(title: str) -> list[tuple[str, str]]:
    """The blocks below a heading: (language, text)."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def follow(clone: Clone, title: str) -> None:
    """Run the section's bash blocks, after its yaml blocks were put into the catalogue and its diff beside it."""
    params = clone.folder / "params.yaml"
    entries = "".join(text for language, text in section(title) if language == "yaml")
    params.write_text(re.sub(r"(?m)^mllms:.*\n", lambda found: found[0] + entries, params.read_text()))
    for language, text in section(title):
        if language == "diff":
            (clone.folder / "my-reward.diff").write_text(text)
        if language == "bash":
            clone.run("bash", "-euc", text)


def metrics(clone: Clone, name: str) -> dict:
    return json.loads((clone.folder / f"data/{name}/numbers.json").read_text())


@pytest.fixture
def own(finished: Clone, tmp_path: Path) -> Clone:
    """A finished clone to change, in which the Makefile finds the environment set up."""
    clone = Clone(shutil.copytree(finished.folder, tmp_path / "own", symlinks=True))
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "finished")
    (clone.folder / ".venv").mkdir()
    (clone.folder / ".venv/.ready").touch()
    return clone


def test_every_section_has_its_test_and_every_block_is_run_or_read() -> None:
    titles = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert titles == ["A prompt of your own", "A new MLLM", "A new preference", "New data", "A new reward"]
    assert {language for title in titles for language, _ in section(title)} == {"bash", "yaml", "json", "diff"}


def test_a_prompt_of_ones_own_is_drawn_and_shown(own: Clone) -> None:
    follow(own, "A prompt of your own")
    [page] = (own.folder / "improved").glob("*/index.html")
    assert "a large red balloon on the left" in page.read_text()
    assert list(page.parent.glob("images/*-round1.png"))


def test_a_new_mllm_is_an_entry_that_can_be_calibrated_and_given_a_role(own: Clone) -> None:
    before = metrics(own, "validator")
    follow(own, "A new MLLM")
    found = json.loads((own.folder / "calibrated/mine/numbers.json").read_text())
    assert {"judge", "validator", "enhancer"} == set(found)
    chosen = yaml.safe_load((own.folder / "params.yaml").read_text())
    assert chosen["stage1"]["mllm"] == "mine"
    assert chosen["mllms"]["mine-served"]["backend"] == "endpoint"
    assert metrics(own, "validator")["balanced_accuracy"] == found["validator"]["balanced_accuracy"]
    assert metrics(own, "validator") != before


def test_a_new_preference_is_one_parameter_and_is_calibrated(own: Clone) -> None:
    before = metrics(own, "calibration")
    follow(own, "A new preference")
    assert set(metrics(own, "calibration")["postcards"]) >= {"brightness", "saturation", "blur", "rank_correlation"}
    assert metrics(own, "calibration") != before


def test_new_data_is_a_folder_with_captions(own: Clone) -> None:
    follow(own, "New data")
    drawn = [json.loads(line) for line in (own.folder / "data/arms/raw/images.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (own.folder / "my-images/captions.jsonl").read_text().splitlines()]
    assert len(drawn) == 24
    assert {row["prompt"] for row in drawn} <= {row["caption"] for row in given}


def test_a_line_of_captions_is_as_the_page_shows_it() -> None:
    (line,) = [text for language, text in section("New data") if language == "json"]
    assert set(json.loads(line)) == {"image", "caption"}


def test_a_new_reward_is_a_file_and_a_weight(own: Clone) -> None:
    follow(own, "A new reward")
    chosen = yaml.safe_load((own.folder / "params.yaml").read_text())["finetune"]["reward"]
    assert chosen == {"preference": 0, "colourfulness": 1.0}
    history = (own.folder / "models/lora/history.jsonl").read_text().splitlines()
    script = (
        "from t2i_feedback.rewards import registry; from PIL import Image;"
        "reward = registry.kinds()['colourfulness'].make(None);"
        "print(reward([Image.new('RGB', (8, 8), (90, 90, 90))], [''])[0] / 8.0)"
    )
    assert own.run("python", "-c", script).stdout.strip() == "0.0"  # grey is not colourful
    assert all(row["reward_mean"] > 0 for row in map(json.loads, history))
