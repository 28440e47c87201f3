"""Stage `check` ends a run before it began where a parameter names a checkpoint that can be nowhere."""

from pathlib import Path

import pytest
import workplaces

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.stages import check

PHOTO = {"backend": "local", "model": "models/no-such-llava"}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplaces.enter(tmp_path, monkeypatch)


def said(section: str, **values: object) -> str:
    raw = workplaces.ours()
    raw[section] |= values
    workplaces.write_parameters(raw)
    with pytest.raises(UserError) as error:
        check.main()
    return str(error.value)


def test_an_image_model_that_is_no_folder_here_is_told_at_once() -> None:
    assert said("model", name="models/postcards/sdd").startswith("model.name: there is no folder models/postcards/sdd")


def test_so_are_an_mllm_and_the_weights_of_a_measure() -> None:
    assert said("mllms", postcards=PHOTO).startswith("mllms.postcards.model: there is no folder models/no-such-llava")
    assert said("evaluate", clip_score="./clip here").startswith("evaluate.clip_score: there is no folder")


def test_a_model_of_the_hub_and_an_entry_that_nobody_asks_are_no_matter_of_this_stage() -> None:
    raw = workplaces.ours()
    raw["mllms"]["unused"] = PHOTO
    raw["model"]["name"] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    workplaces.write_parameters(raw)
    check.main()
    assert (paths.CHECKED / "model.name").read_text().startswith("not a folder")
