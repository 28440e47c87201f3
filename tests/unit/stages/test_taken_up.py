"""Unfinished work is taken up when nothing changed that its result depends on, and only then."""

import shutil
from pathlib import Path

import made_up_run
import pytest
import workplaces

from t2i_feedback.foundation import paths, pipeline, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import load
from t2i_feedback.foundation.rows import CaptionRow, as_typed, read_rows, write_rows
from t2i_feedback.stages import best_of_n, calibrate, enhance, evaluate, finetune, validate

pytestmark = pytest.mark.slow  # needs other processes

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
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    workplaces.enter(tmp_path, monkeypatch)
    made_up_run.write_run(tmp_path, captions=4)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    write_rows(paths.FIRST_PROMPTS, as_typed(captions))
    for also in (paths.FINETUNE_CAPTIONS, paths.REFERENCE_CAPTIONS):
        shutil.copyfile(paths.EVALUATION_CAPTIONS, also)
    paths.REFERENCE.mkdir(parents=True)
    return tmp_path


def stopped(stage: str, **values) -> set[str]:
    """The folders of partial work after a run whose models are nowhere, their entries changed as told."""
    raw = workplaces.ours()
    for name in ("postcards", "postcards-judge"):
        raw["mllms"][name] = NOWHERE | values
    raw["finetune"]["require_calibrated"] = False
    workplaces.write_parameters(raw)
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


def test_a_word_mended_in_the_report_leaves_an_interrupted_fine_tuning_and_one_in_the_trainer_does_not(
    workplace: Path,
) -> None:
    (workplace / "src").unlink()
    shutil.copytree(workplaces.REPOSITORY / "src", workplace / "src", ignore=shutil.ignore_patterns("__pycache__"))

    def name() -> str:
        return workspace.key(pipeline.running("finetune"), load(finetune.Settings))

    before = name()
    page = workplace / "src/t2i_feedback/reporting/page.py"
    page.write_text(page.read_text() + "# a word\n")
    assert name() == before
    trainer = workplace / "src/t2i_feedback/finetuning/trainer.py"
    trainer.write_text(trainer.read_text() + "# a word\n")
    assert name() != before


def test_a_checkpoint_that_was_trained_again_in_its_place_starts_afresh(workplace: Path) -> None:
    shutil.copytree(workplaces.REPOSITORY / "models/postcards/judge", workplace / "elsewhere")
    raw = workplaces.ours()
    raw["mllms"]["postcards-judge"]["model"] = "elsewhere"
    workplaces.write_parameters(raw)

    def names() -> tuple[str, str]:
        enhancing = workspace.key(pipeline.running("enhance"), load(enhance.Settings))
        return workspace.key(pipeline.running("finetune"), load(finetune.Settings)), enhancing

    before = names()
    config = workplace / "elsewhere/config.json"
    config.write_text(config.read_text() + " ")
    after = names()
    assert before[0] != after[0], "fine-tuning watches the held-out judge"
    assert before[1] == after[1], "enhancing does not use it"
