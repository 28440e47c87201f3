"""Claims on captions that nothing was chosen on: which these are, and how the seeds' comparisons become one."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import workplaces
import yaml

from t2i_feedback.datasets import coco
from t2i_feedback.datasets.postcards.writing import write_dataset
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools import sealed
from t2i_feedback.tools.paper import experiments

REPOSITORY = Path(__file__).parents[3]
LIST = yaml.safe_load((REPOSITORY / "data/sealed.yaml").read_text())["list"]


def test_a_list_has_its_own_seeds_and_the_next_list_others() -> None:
    first, second = sealed.seeds(1, 20), sealed.seeds(2, 20)
    assert first[:5] == sealed.seeds(1, 5)
    assert len({*first, *second}) == 40
    used = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["seed"]
    assert used not in {*first, *second}
    for count in (0, 21):
        with pytest.raises(UserError, match="SEEDS is"):
            sealed.seeds(1, count)


def test_only_make_sealed_reads_the_list() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    readers = {
        name
        for name in files
        if Path(name).suffix in {".py", ".yaml", ".sh", ""} and name != "data/sealed.yaml"
        if "sealed.yaml" in (REPOSITORY / name).read_text(encoding="utf-8", errors="replace")
    }
    assert readers == {"src/t2i_feedback/tools/sealed.py", "tests/unit/tools/test_sealed.py"}


def test_pooling_keeps_the_mean_adds_half_widths_in_squares_and_shows_the_spread() -> None:
    one = {"a_minus_b": 1.0, "a_minus_b_low": 0.7, "a_minus_b_high": 1.3, "alarms": 0.0}
    other = {"a_minus_b": 2.0, "a_minus_b_low": 1.6, "a_minus_b_high": 2.4, "alarms": 1.0}
    [found] = sealed.pooled([one, other])
    assert (found.key, found.mean, found.values) == ("a_minus_b", 1.5, (1.0, 2.0))
    assert (found.low, found.high) == (pytest.approx(1.25), pytest.approx(1.75))
    assert found.spread == pytest.approx(0.5**0.5)
    assert sealed.pooled([one, {"alarms": 0.0}]) == []
    text = sealed.markdown([found], 1, {3: "abc", 4: "abd"}, "make sealed SEEDS=2")
    assert "| a_minus_b | 1.500 | 1.250 to 1.750 | 0.707 | 1.000 to 2.000 |" in text


def test_what_was_run_is_pooled_and_says_what_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed run's numbers stand for those of two finished seeds; the third was not run."""

    class Files:
        def __init__(self, found: experiments.Experiment) -> None:
            assert found.base == "c0ffee" * 6

        def numbers(self, path: Path) -> dict:
            return json.loads((REPOSITORY / path).read_text())

    def find(name: str, wanted: dict, digests: object) -> experiments.Experiment | None:
        place = int(name.split("-")[2])
        assert wanted["seed"] == sealed.seeds(LIST, 3)[place - 1] and wanted["model"]["name"] == "models/postcards/sd3"
        return experiments.Experiment(name, "rev", "c0ffee" * 6) if place < 3 else None

    monkeypatch.setattr(experiments, "find", find)
    monkeypatch.setattr(experiments, "Files", Files)
    workplaces.enter(tmp_path, monkeypatch, workplaces.ours())
    for name in ("data", "profiles"):
        (tmp_path / name).mkdir(exist_ok=True)
    for name in ("data/sealed.yaml", "profiles/flow.yaml"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    monkeypatch.setattr(experiments, "commit", lambda: "c0ffee" * 6)
    sealed.main("--seeds", "3", "--collect", "--profile", "flow")
    text = (tmp_path / "metrics/sealed-flow.md").read_text()
    assert '`make sealed SEEDS=3 PROFILE="flow"`, 2 seeds, begun at c0ffeec0ffee.' in text
    found = json.loads((tmp_path / "metrics/sealed-flow.json").read_text())
    assert set(found["seeds"]) == {str(seed) for seed in sealed.seeds(LIST, 2)} and found["profile"] == ["flow"]
    kept = found["comparisons"]["alignment_finetuned_over_raw"]
    assert kept["seeds"][0] == kept["seeds"][1] == kept["mean"]
    monkeypatch.setattr(experiments, "find", lambda *_: None)
    with pytest.raises(UserError, match="`make sealed` runs them"):
        sealed.main("--collect")


@pytest.mark.slow
def test_captions_for_fine_tuning_for_settings_and_for_claims_are_three_disjoint_sets(tmp_path: Path) -> None:
    """Settings are chosen by benchmarks/objectives.py, whose captions are of other scenes than any evaluation's."""
    spec = importlib.util.spec_from_file_location("objectives", REPOSITORY / "benchmarks/objectives.py")
    objectives = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(objectives)
    settings = {text for seed in range(5) for text in objectives.captions(256, f"tuning {seed}", for_tuning=True)}
    trained = {text for seed in range(5) for text in objectives.captions(96, f"x {seed}", for_tuning=False)}
    assert len(settings) > 256 and not settings & trained
    for seed in sealed.seeds(LIST, 2):
        root = tmp_path / str(seed)
        assert len(list(write_dataset(root, {"val": 256, "train": 128}, seed))) == 384
        claims, learnt = (
            {one.text for image in coco.read(root, split) for one in image.captions} for split in ("val", "train")
        )
        assert claims and learnt and not claims & learnt and not settings & (claims | learnt)
