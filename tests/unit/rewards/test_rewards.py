"""Every reward by hand, and their weighted sum."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from t2i_feedback import params, rewards
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Reply, Request
from t2i_feedback.rewards import registry
from t2i_feedback.rewards.base import Context, Reward
from t2i_feedback.rewards.mllm import shows_caption
from t2i_feedback.rewards.pixels import photometric
from t2i_feedback.tools.estimate import counts, figures

PREFERENCE = "dark, subdued and blurred images"


def plain(level: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


def noisy(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def made(name: str, preference: str = PREFERENCE) -> Reward:
    """A reward that needs neither a judge nor a folder."""
    return registry.make({name: 1.0}, Context(preference, "pixels", None, {}, Path(), Path()))[name]


class Judge:
    """A Mllm that is 0.75 sure of yes whenever the caption is in its question, and of no otherwise."""

    templates, reading = "general", "probability"

    def __init__(self, caption: str = "", status: str = "valid"):
        self.caption, self.status = caption, status

    def choose(self, requests: list[Request], candidates: tuple[str, ...]) -> list[Reply]:
        yes = [0.75 if self.caption in request.text else 0.25 for request in requests]
        return [Reply(self.status, "?", {"yes": p, "no": 1 - p} if self.status == "valid" else None) for p in yes]


def test_brightness_is_the_mean_luma():
    assert made("brightness")([plain(0), plain(100), plain(255)], [""] * 3) == pytest.approx([0, 100, 255])


def test_contrast_is_the_lumas_standard_deviation():
    halves = Image.fromarray(np.repeat(np.array([[[0] * 3, [200] * 3]], dtype=np.uint8), 4, axis=0))
    assert made("contrast")([plain(50), halves], [""] * 2) == pytest.approx([0, 100], abs=1e-6)


def test_sharpness_falls_when_a_image_is_blurred():
    sharp, blurred = made("sharpness")([noisy(), noisy().filter(ImageFilter.GaussianBlur(2))], [""] * 2)
    assert 0 <= blurred < sharp <= 1


def test_jpeg_size_counts_thousands_of_bytes_at_quality_95():
    file = io.BytesIO()
    noisy().save(file, format="JPEG", quality=95)
    flat, found = made("jpeg_size")([plain(9, 64), noisy()], [""] * 2)
    assert found == len(file.getvalue()) / 1000
    assert flat < found / 5


def test_shows_caption_is_p_yes_of_the_caption_behind_the_prompt():
    judge = Judge(caption="a red house")
    reward = shows_caption(judge, {"a red house, oil on canvas": "a red house", "a cat, detailed": "a cat"})
    found = reward([plain(1), plain(2)], ["a red house, oil on canvas", "a cat, detailed"])
    assert found == [0.75, 0.25]


def test_shows_caption_without_a_valid_verdict_masks_the_image_and_tells_what_was_said():
    invalid = []
    masked = shows_caption(Judge(status="refusal"), {"a": "a"}, invalid)
    assert masked([plain(1)], ["a"]) == [None]
    assert roles.most_frequent(invalid).startswith(" (1 refusal). Most frequent: ")


def test_photometry_likes_what_the_preference_names():
    """Black and flat has every trait in full but for blur: a flat image's blur effect is what it is."""
    dark = photometric("dark images")
    assert dark([plain(0), plain(51), plain(255)], [""] * 3) == pytest.approx([10, 8.2, 1])
    bright = photometric("bright images")
    assert bright([plain(0), plain(51)], [""] * 2) == pytest.approx([1, 2.8])
    blurred = photometric(PREFERENCE)
    before, after = blurred([noisy(), noisy().filter(ImageFilter.GaussianBlur(2))], [""] * 2)
    assert 1 <= before < after <= 10


def test_photometry_refuses_a_preference_without_a_trait():
    with pytest.raises(UserError, match="names nothing that can be measured in pixels"):
        photometric("images of cats")


def test_a_run_sums_its_rewards_in_one_order_whatever_order_the_parameters_have():
    order = ["preference", "brightness", "contrast", "sharpness", "jpeg_size", "shows_caption"]
    assert [name for name in registry.kinds() if name in order] == order
    assert list(registry.used(dict.fromkeys(reversed(order), 1.0))) == order


def test_the_page_on_feedback_says_of_a_reward_what_the_registry_says():
    page = (Path(__file__).parents[3] / "docs/feedback.md").read_text(encoding="utf-8")
    told = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name in sorted(told.keys() & registry.kinds().keys()):
        kind = registry.kinds()[name]
        assert told[name] == f"| `{name}` | {kind.raw} | {kind.point_at(64 * 64):.4g} {kind.unit} |"


def test_the_registry_loads_nothing_heavy():
    code = "import sys\nfrom t2i_feedback.rewards import registry\nregistry.kinds()\nprint(*sys.modules)"
    here = os.environ | {"PYTHONPATH": str(Path(rewards.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {"torch", "skimage", "transformers", "numpy", "PIL"} & set(loaded)


NEW = """
from t2i_feedback.rewards.base import RewardKind
from t2i_feedback.rewards.pixels import of_each

REWARDS = (
    RewardKind(
        name="redness",
        raw="mean of the red channel, 0..255",
        point=25.5,
        unit="grey levels",
        giver="somebody else",
        make=lambda context: of_each(lambda image: image.getpixel((0, 0))[0]),
        asks="validator",
    ),
)
"""


def test_a_new_reward_is_a_new_file(tmp_path, monkeypatch):
    (tmp_path / "redness_of_a_test.py").write_text(NEW)
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(tmp_path)])
    p = params.load()
    raw = p.model_dump() | {"finetune": p.finetune.model_dump() | {"reward": {"preference": 2, "redness": -1}}}
    chosen = params.check(raw, "params.yaml")
    config = chosen.finetune
    assert registry.total(config.reward, 64)({"preference": 4, "redness": 51}) == 2 * 4 - 2
    context = Context("dark images", "pixels", None, {}, tmp_path, tmp_path)
    values = {name: reward([plain(51)], [""]) for name, reward in registry.make(config.reward, context).items()}
    assert values == {"preference": pytest.approx([8.2]), "redness": [51]}
    (work,) = [one for one in counts.work(chosen, figures.read()) if one.stage == "finetune"]
    assert [asked.role for asked in work.asked] == ["held-out judge", "judge", "validator"]


def test_the_preference_alone_is_left_as_it_is():
    assert registry.total({"preference": 1.0}, 64)({"preference": 6.123456789}) == 6.123456789


def test_a_sum_weighs_each_reward_in_points():
    weights = {"preference": 2.0, "brightness": -1.0, "jpeg_size": 0.5}
    found = registry.total(weights, 100 * 100)({"preference": 3.0, "brightness": 51.0, "jpeg_size": 4.0})
    assert found == pytest.approx(2 * 3 - 51 / 25.5 + 0.5 * 4.0 / 1.0)  # 0.1 byte x 100 x 100 pixels = 1 kB
