"""Work that a budget or a server stopped is taken up when the catalogue's bounds have changed, and only then."""

import shutil
from pathlib import Path

import made_up_run
import pytest
import yaml

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, as_typed, read_rows, write_rows
from t2i_feedback.stages import best_of_n, calibrate, enhance, evaluate, finetune, validate

NOWHERE = {"backend": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9/v1", "retries": 0}
PRICES = {"usd_per_million_input_tokens": 10, "usd_per_million_output_tokens": 30}
STAGES = {
    "calibrate": calibrate.main,
    "enhance": enhance.main,
    "best_of_n": best_of_n.main,
    "validate": lambda: validate.main("validated"),
    "finetune": finetune.main,
    "evaluate": lambda: evaluate.main("raw"),
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    made_up_run.write_run(tmp_path, captions=4)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    paths.PROMPTS.mkdir()
    write_rows(paths.FIRST_PROMPTS, as_typed(captions))
    for also in (paths.FINETUNE_CAPTIONS, paths.REFERENCE_CAPTIONS):
        shutil.copyfile(paths.EVALUATION_CAPTIONS, also)
    for folder in (paths.REFERENCE, paths.ORACLE):
        folder.mkdir(parents=True)


def stopped(stage: str, **values) -> set[str]:
    """The folders of partial work after a run whose models are nowhere, their entries changed as told."""
    raw = yaml.safe_load((made_up_run.REPOSITORY / "params.yaml").read_text())
    for name in ("postcards", "postcards-judge"):
        raw["mllms"][name] = NOWHERE | values
    raw["finetune"]["require_calibrated"] = False
    paths.PARAMS.write_text(yaml.safe_dump(raw))
    with pytest.raises((UserError, FileNotFoundError)):  # evaluate stops earlier: nothing is measured of the reference
        STAGES[stage]()
    return {folder.name for folder in (paths.cache() / "partial").iterdir() if folder.is_dir()}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("stage", STAGES)
def test_partial_work_is_taken_up_when_a_bound_is_raised(stage: str) -> None:
    first = stopped(stage, max_calls=5)
    assert len(first) == 1
    assert stopped(stage, max_calls=50) == first
    assert stopped(stage, max_cost_usd=9, **PRICES, concurrency=2, timeout_seconds=9, retries=1) == first


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("stage", STAGES)
def test_another_model_or_reading_starts_afresh(stage: str) -> None:
    stopped(stage)
    stopped(stage, model="another")
    assert len(stopped(stage, reading="text")) == 3
