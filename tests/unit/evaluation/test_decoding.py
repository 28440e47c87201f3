"""Images are decoded once while there is room, and read ahead in order."""

import threading
from pathlib import Path

import pytest
from PIL import Image

from t2i_feedback.evaluation import decoding

FILES = [Path(f"{number}.png") for number in range(12)]


class Decoder:
    """Makes 8 x 8 images, and notes which files it was asked for."""

    def __init__(self) -> None:
        self.decoded: list[Path] = []

    def __call__(self, file: Path) -> Image.Image:
        self.decoded.append(file)
        return Image.new("RGB", (8, 8), int(file.stem))


def test_a_image_is_decoded_once_however_often_it_is_opened() -> None:
    decoder = Decoder()
    images = decoding.ImageFiles(decoder)
    for _ in range(3):
        assert [image.getpixel((0, 0))[0] for image in images.open_all(FILES)] == list(range(12))
    assert sorted(decoder.decoded) == sorted(FILES)


def test_what_does_not_fit_is_decoded_again() -> None:
    decoder = Decoder()
    images = decoding.ImageFiles(decoder, room=5 * 8 * 8 * 3)
    for _ in range(2):
        for file in FILES:
            images.open(file)
    assert [decoder.decoded.count(file) for file in FILES] == [1] * 5 + [2] * 7


def test_results_come_in_the_order_of_their_items() -> None:
    assert list(decoding.ahead(range(50), lambda n: n * n)) == [n * n for n in range(50)]


def test_the_next_items_are_worked_on_while_one_is_in_use() -> None:
    started = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            started.set()
        return number

    for number in decoding.ahead(range(2), work):
        assert number or started.wait(timeout=10)


def test_only_so_many_results_wait() -> None:
    done: list[int] = []
    results = decoding.ahead(range(1000), done.append)
    next(results)
    assert len(done) <= decoding.AHEAD + 1
    results.close()
    assert len(done) <= decoding.AHEAD + 1


def test_a_problem_reaches_whoever_asks() -> None:
    def work(number: int) -> float:
        return 1 / (2 - number)

    results = decoding.ahead(range(5), work)
    assert [next(results), next(results)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_every_resizer_makes_a_square_and_leaves_one_of_the_size_alone() -> None:
    wide = Image.effect_noise((40, 20), 50).convert("RGB")
    made = {name: decoding.square(wide, 16, name) for name in decoding.RESIZERS}
    assert {image.size for image in made.values()} == {(16, 16)}
    assert len({image.tobytes() for image in made.values()}) == len(decoding.RESIZERS)
    assert all(
        decoding.square(made["squash_bicubic"], 16, name) is made["squash_bicubic"] for name in decoding.RESIZERS
    )
