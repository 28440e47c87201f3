import numpy as np
import pytest
from PIL import Image, ImageFilter

from t2i_feedback.foundation import photometry


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((64, 64, 3), (red, green, blue), dtype=np.uint8)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 0, 0), 76.245), ((0, 255, 0), 149.685), ((0, 0, 255), 29.07), ((255, 255, 255), 255)]
)
def test_brightness_has_the_weights_of_rec_601(colour: tuple[int, int, int], luma: float) -> None:
    assert photometry.brightness(flat(*colour)) == pytest.approx(luma, abs=1e-6)


def test_contrast_is_the_standard_deviation_of_the_luma() -> None:
    halves = flat(0, 0, 0)
    halves[:, 32:] = 255
    assert photometry.contrast(halves) == pytest.approx(127.5)
    assert photometry.contrast(flat(9, 90, 200)) == pytest.approx(0, abs=1e-9)


def test_sharpness_falls_with_every_blur_and_a_flat_image_has_none() -> None:
    image = Image.fromarray(noise())
    values = [
        photometry.sharpness(np.array(image.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 0.7, 1.5, 3)
    ]
    assert values == sorted(values, reverse=True)
    assert 0 <= values[-1] < values[0] <= 1
    assert photometry.sharpness(flat(40, 40, 40)) == pytest.approx(0, abs=1e-6)


def test_a_darkened_image_rounded_to_8_bits_measures_sharper() -> None:
    across, down = np.meshgrid(np.linspace(0, 3, 64), np.linspace(0, 3, 64))
    smooth = 130 + 60 * np.sin(across) * np.cos(down)
    light, dark = (np.repeat((smooth * share).round().astype(np.uint8)[..., None], 3, 2) for share in (1, 0.3))
    assert photometry.sharpness(dark) > photometry.sharpness(light) + 0.005


def test_colourfulness_of_grey_is_zero_and_of_half_red_half_blue_is_by_the_formula() -> None:
    assert photometry.colourfulness(flat(128, 128, 128)) == 0
    halves = flat(255, 0, 0)
    halves[:, 32:] = (0, 0, 255)
    # red-green: 255 and 0; yellow-blue: 127.5 and -255
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, -63.75)
    assert photometry.colourfulness(halves) == pytest.approx(expected)


def test_means_average_images_and_take_pillow_images() -> None:
    images = [Image.fromarray(flat(0, 0, 0)), Image.fromarray(flat(255, 255, 255))]
    assert photometry.means(images)["brightness"] == pytest.approx(127.5)
    assert photometry.measure(noise()).keys() == {"brightness", "contrast", "sharpness"}


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), dtype=np.uint8), np.zeros((3, 8, 8), dtype=np.uint8)]
)
def test_anything_but_uint8_rgb_is_refused(image: np.ndarray) -> None:
    for function in (photometry.brightness, photometry.contrast, photometry.sharpness, photometry.colourfulness):
        with pytest.raises(ValueError, match="uint8 RGB"):
            function(image)
