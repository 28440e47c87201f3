"""What the loop's stages pass on between validator and enhancer."""

from pathlib import Path

import pytest
from PIL import Image
from test_roles import Prepared, p_yes

from t2i_feedback import params
from t2i_feedback.foundation.rows import CaptionRow
from t2i_feedback.loop.studio import Studio
from t2i_feedback.mllm.base import Reply

REPOSITORY = Path(__file__).parents[2]
CAPTIONS = [CaptionRow(caption_id=i, image_id=i, caption=f"a fish and {i} suns", image="a.png") for i in (1, 2)]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return ["1.png", "2.png"]


def studio(folder: Path, mllm: Prepared, questions: bool) -> Studio:
    p = params.load(REPOSITORY / "params.yaml")
    p = p.model_copy(update={"stage1": p.stage1.model_copy(update={"questions": questions})})
    return Studio(p, None, folder, mllm, [])


def test_a_verdict_by_items_is_its_own_explanation(tmp_path: Path, images: list[str]) -> None:
    lists = Reply("valid", "a fish; a sun"), Reply("valid", "a fish; two suns")
    mllm = Prepared(*lists, p_yes(0.9), p_yes(0.1), p_yes(0.2), p_yes(0.3), templates="postcards")
    place = studio(tmp_path, mllm, questions=True)
    assert [verdict.p_yes for verdict in place.validate(CAPTIONS, images, 0)] == [0.5, 0.0]
    assert place.explain(CAPTIONS, images) == ["there is no sun", "there is no fish; two suns"]
    assert mllm.replies == []  # nobody was asked what is wrong


def test_a_verdict_that_says_no_more_than_no_is_asked_why(tmp_path: Path, images: list[str]) -> None:
    said = Reply("valid", "No, the fish is red."), Reply("valid", "no"), Reply("valid", "there is no sun")
    place = studio(tmp_path, Prepared(*said, reading="text"), questions=False)
    place.validate(CAPTIONS, images, 0)
    assert place.explain(CAPTIONS, images) == ["the fish is red", "there is no sun"]


def test_an_explanation_that_fails_is_none(tmp_path: Path, images: list[str]) -> None:
    mllm = Prepared(p_yes(0.1), p_yes(0.2), Reply("refusal", "no"), Reply("valid", "there is no sun"))
    place = studio(tmp_path, mllm, questions=False)
    place.validate(CAPTIONS, images, 0)
    assert place.explain(CAPTIONS, images) == [None, "there is no sun"]
