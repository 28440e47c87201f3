"""Sweeps and what is read from them."""

import pytest
from PIL import Image

from t2i_feedback.records import CalibrationRow
from t2i_feedback.stages import calibrate

PREFERENCE = (
    "images that have a dark, subdued color palette with a blurred appearance, "
    "creating a somber and introspective atmosphere"
)


@pytest.mark.parametrize(
    ("preference", "directions"),
    [
        (PREFERENCE, {"brightness": -1, "contrast": -1, "saturation": -1, "blur": 1}),
        ("bright, vivid and sharp pictures", {"brightness": 1, "saturation": 1, "blur": -1}),
        ("pictures of cats", {}),
        ("dark and bright at once", {}),
    ],
)
def test_directions_are_read_from_the_preference(preference: str, directions: dict) -> None:
    assert calibrate.directions(preference) == directions


def rows(trait, scores: list[float | None], caption_id: int = 1) -> list[CalibrationRow]:
    return [
        CalibrationRow(judge="j", trait=trait, level=level, caption_id=caption_id, score=score)
        for level, score in zip(calibrate.levels(trait, len(scores)), scores, strict=True)
    ]


def test_rank_correlation_is_a_mean_over_images_in_the_preferred_direction() -> None:
    swept = rows("brightness", [1, 2, 3]) + rows("brightness", [5, 4, 3], caption_id=2)
    swept += rows("blur", [1, None, 2, 9]) + rows("contrast", [4, 4, 4]) + rows("saturation", [1, 2, 3])
    found = calibrate.rank_correlations(swept, PREFERENCE)
    assert found == pytest.approx(
        {"rank_correlation": 0.5, "brightness": 0.0, "contrast": 0.0, "saturation": 1.0, "blur": 1.0}
    )


def test_a_preference_that_names_no_trait_has_no_rank_correlation() -> None:
    assert calibrate.rank_correlations(rows("blur", [1, 2, 3]), "cats") == {"rank_correlation": None}


def test_changes_change_what_they_say() -> None:
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    image.paste((200, 20, 20), (0, 0, 20, 20))
    dark, grey = calibrate.change(image, "brightness", 0.5), calibrate.change(image, "saturation", 0.0)
    assert dark.getpixel((5, 5)) == (100, 10, 10)
    assert len(set(grey.getpixel((5, 5)))) == 1
    assert calibrate.change(image, "blur", 0.0).tobytes() == image.tobytes()
    assert calibrate.levels("blur", 5) == [0.0, 0.6, 1.2, 1.8, 2.4]
