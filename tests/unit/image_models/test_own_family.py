"""The family of docs/image-models.md ("A family of your own") as it stands there, under the tests of all families."""

import re
from pathlib import Path

import pytest
import test_families
import tiny_families

from t2i_feedback.image_models import families

DOCS = Path(__file__).parents[3] / "docs" / "image-models.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.checkpoint("flux", tmp_path_factory.mktemp("flux"))


@pytest.fixture(autouse=True)
def a_file_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [lines] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (tmp_path / "families").mkdir()
    (tmp_path / "families/flux.py").write_text(lines)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])


def test_it_is_found() -> None:
    assert "FluxPipeline" in families.families()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_rollout_draws_what_diffusers_own_pipeline_draws(folder, guidance) -> None:
    test_families.test_a_rollout_without_noise_draws_what_diffusers_own_pipeline_draws(folder, guidance, "")


def test_the_arms_and_batches(folder) -> None:
    test_families.test_the_arms_are_drawn_as_diffusers_draws_them(folder)
    test_families.test_a_image_does_not_depend_on_its_batch(folder, 0.7)


@pytest.mark.slow
def test_it_can_be_fine_tuned(folder, tmp_path) -> None:
    test_families.test_a_replayed_rollout_has_a_ratio_of_1_at_every_step_and_batch_size(folder, tmp_path)
    test_families.test_the_kl_of_a_fresh_adapter_is_0_and_it_changes_nothing(folder, tmp_path / "kl")
    test_families.test_a_saved_adapter_draws_the_same_through_diffusers_own_loader(folder, tmp_path / "adapter")


def test_a_negative_prompt_where_no_guidance_leads_away_is_refused(folder) -> None:
    assert "model.negative_prompt: the guidance of a FluxPipeline" in test_families.refusal(folder, negative_prompt="x")
