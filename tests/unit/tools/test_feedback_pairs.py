"""make feedback, two images of a prompt at a time: what is asked next, and what an answer does."""

import sys
from pathlib import Path

import pytest
import workplaces
from fastapi.testclient import TestClient
from PIL import Image

from t2i_feedback import params
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards.sheet import Line, Sheet
from t2i_feedback.tools.feedback import __main__ as feedback
from t2i_feedback.tools.feedback.pairing import duels
from t2i_feedback.tools.feedback.server import make_app
from t2i_feedback.tools.feedback.training import Training

PORT, TOKEN = 5124, "a-token"
ORIGIN = {"origin": f"http://127.0.0.1:{PORT}"}


def lines(**scores: float | None) -> dict[str, Line]:
    """Images that are named by their prompt and a number."""
    return {name: Line(prompt=name[0], score=score, number=i) for i, (name, score) in enumerate(scores.items(), 2)}


def asked(found: dict[str, Line], names: list[str] | None = None) -> list[set[str]]:
    return [{duel.left, duel.right} for duel in duels(found, names or list(found))]


def test_each_prompt_has_one_question_at_a_time_in_the_order_asked_about() -> None:
    found = lines(a1=None, a2=None, b1=None, a3=None, b2=None, c1=None)
    assert asked(found) == [{"a1", "a2"}, {"b1", "b2"}]  # nothing to compare c1 with
    assert asked(found, ["b2", "a3", "a1", "b1", "gone"]) == [{"b1", "b2"}, {"a3", "a1"}]


def test_an_image_meets_the_one_that_is_nearest_to_the_middle() -> None:
    assert asked(lines(a1=7.1, a2=3.9, a3=None)) == [{"a3", "a1"}]
    assert asked(lines(a1=8.0, a2=None, a3=5.0, a4=None)) == [{"a2", "a3"}]
    assert asked(lines(a1=8.0, a2=5.0)) == []


def test_images_of_earlier_epochs_take_no_part() -> None:
    assert asked(lines(a1=5.0, a2=5.0, a3=None), ["a3"]) == []


def test_both_sides_are_taken() -> None:
    found = lines(**{f"{letter}{i}": None for letter in "abcdefghij" for i in range(2)})
    first_on_the_left = [duel.left < duel.right for duel in duels(found, list(found))]
    assert 0 < sum(first_on_the_left) < 10


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    made = Sheet(tmp_path / "sheet", "dark images")
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 90, 170, 250)]
    made.ask(made.enter(images, ["cat", "cat", "cat", "dog"]))
    return made


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training([sys.executable, "-c", ""], [sys.executable, "-c", ""], tmp_path / "log")


@pytest.fixture
def client(sheet: Sheet, training: Training) -> TestClient:
    app = make_app(sheet, training, 8, PORT, TOKEN, by_pairs=True)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
    client.get(f"/?token={TOKEN}")
    return client


def compare(client: TestClient, better: str | None, duel: dict | None = None) -> dict:
    chosen = duel or client.get("/state").json()["duels"][0]
    body = {"left": chosen["left"], "right": chosen["right"], "better": better}
    return client.post("/comparisons", json=body, headers=ORIGIN).json()


def test_choices_reach_the_disk_and_training_starts_when_the_last_image_has_a_score(
    client: TestClient, sheet: Sheet, training: Training
) -> None:
    assert 'data-by-pairs="yes"' in client.get("/").text
    first = client.get("/state").json()["duels"][0]
    assert compare(client, "left")["scored"] == 2
    assert sheet.read()[first["left"]].score > 5.5 > sheet.read()[first["right"]].score
    undone = compare(client, None, first)
    assert (undone["scored"], undone["duels"][0]) == (0, first)
    compare(client, "right")
    state = compare(client, "neither")
    assert (len(state["waiting"]), state["duels"], state["training"]) == (1, [], "none")  # the dog is scored directly
    client.post("/answers", json={"image": state["waiting"][0]["image"], "score": 9}, headers=ORIGIN)
    assert training.state() != "none"
    assert len(sheet.answers.read_text().splitlines()) == 5


@pytest.mark.parametrize("better", ["both", 1, ""])
def test_what_is_no_choice_is_refused(client: TestClient, sheet: Sheet, better: object) -> None:
    duel = client.get("/state").json()["duels"][0]
    body = {"left": duel["left"], "right": duel["right"], "better": better}
    assert client.post("/comparisons", json=body, headers=ORIGIN).status_code == 422
    for right in ("../x.png", duel["left"], list(sheet.read())[-1]):
        body = {"left": duel["left"], "right": right, "better": "left"}
        assert client.post("/comparisons", json=body, headers=ORIGIN).status_code == 422
    assert not sheet.answers.exists()


def test_a_stranger_compares_nothing(client: TestClient, sheet: Sheet) -> None:
    duel = client.get("/state").json()["duels"][0]
    body = {"left": duel["left"], "right": duel["right"], "better": "left"}
    assert client.post("/comparisons", json=body).status_code == 403
    assert client.post("/comparisons", json=body, headers={"origin": "http://evil.example"}).status_code == 403
    client.cookies.clear()
    assert client.post("/comparisons", json=body, headers=ORIGIN).status_code == 401
    assert not sheet.answers.exists()


def test_what_the_run_finds_most_telling_is_asked_about_first(client: TestClient, sheet: Sheet) -> None:
    order = list(reversed(sheet.read()))
    sheet.ask(order)
    assert [one["image"] for one in client.get("/state").json()["waiting"]] == order


def test_pairs_ask_about_equally_many_images_of_each_prompt_and_need_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplaces.enter(tmp_path, monkeypatch)
    before = paths.PARAMS.read_bytes()
    with pytest.raises(UserError, match=r"asks about 8 images of 8 prompts.*: QUESTIONS=16 or more"):
        feedback._set("scenes at night", 8, 8, pairs=True)
    assert paths.PARAMS.read_bytes() == before
    found = feedback._set("scenes at night", 8, 16, pairs=True).finetune
    assert (found.acquisition, found.feedback_budget) == ("random", 16) and found == params.load().finetune
