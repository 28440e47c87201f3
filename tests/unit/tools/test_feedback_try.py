"""make feedback, a prompt that is typed: its rounds appear, one prompt at a time, and nobody else may ask."""

import time
from pathlib import Path

import pytest
import workplaces
from fastapi.testclient import TestClient

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.rewards.sheet import Sheet
from t2i_feedback.tools.feedback import trying
from t2i_feedback.tools.feedback.server import make_app
from t2i_feedback.tools.feedback.training import Training

PORT, TOKEN = 5125, "a-token"
ORIGIN = {"origin": f"http://127.0.0.1:{PORT}"}
SECONDS = 120


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    parameters = workplaces.ours()
    parameters["stage1"]["max_rounds"] = 2
    parameters["model"]["steps"] = 2
    workplaces.enter(tmp_path, monkeypatch, parameters)
    training = Training(["sleep", "60"], [], tmp_path / "log")
    client = TestClient(
        make_app(Sheet(tmp_path / "sheet", "dark"), training, 8, PORT, TOKEN), base_url=f"http://127.0.0.1:{PORT}"
    )
    yield client
    training.end()


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    stranger.get(f"/?token={TOKEN}")
    return stranger


def begin(client: TestClient, prompt: object, adapter: bool = False) -> tuple[int, dict]:
    response = client.post("/try/prompts", json={"prompt": prompt, "adapter": adapter}, headers=ORIGIN)
    return response.status_code, response.json()


def ended(client: TestClient) -> dict:
    start = time.monotonic()
    while (state := client.get("/try/state").json())["running"]:
        assert time.monotonic() - start < SECONDS
        time.sleep(0.1)
    return state


@pytest.mark.slow
def test_a_prompt_is_improved_round_by_round_one_at_a_time(client: TestClient) -> None:
    hostile = "a red house <script>alert(1)</script>"
    status, state = begin(client, f"  {hostile}\n")
    assert (status, state["running"], state["prompt"], state["problem"]) == (200, True, hostile, "")
    assert begin(client, "a tree") == (422, {"detail": "one prompt at a time: this one is still under way"})
    state = ended(client)
    assert (state["problem"], state["max_rounds"], state["trained"]) == ("", 2, False)
    assert "never saw: script, alert; " in state["warning"]
    assert 1 <= len(state["rounds"]) <= 2 and sum(one["kept"] for one in state["rounds"]) == 1
    for one in state["rounds"]:
        assert client.get(one["image"]).content.startswith(b"\x89PNG") and one["outcome"]
    assert (Path(state["folder"]) / "index.html").is_file() and Path(state["folder"]).parent == paths.IMPROVED
    for address in ("/try/images/1/9", "/try/images/2/0", "/try/images/1/-1"):
        assert client.get(address).status_code == 404
    assert begin(client, "a large red circle and a small yellow star at night")[0] == 200
    assert client.get("/try/images/1/0").status_code == 404  # another prompt's now
    assert all("P(yes)" in one["outcome"] for one in ended(client)["rounds"])


def test_what_goes_wrong_is_one_line(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin(client, "  ") == (422, {"detail": "type what the image is to show"})
    assert begin(client, "x" * (trying.LONGEST + 1))[0] == 422
    assert begin(client, "a tree", adapter=True)[0] == 200
    assert "ADAPTER: models/lora holds no" in ended(client)["problem"]
    paths.PARAMS.write_text("seed: [")
    begin(client, "a tree")
    assert ended(client)["problem"]

    def broken(self: trying.Improver, on_round: object) -> None:
        raise RuntimeError("out of memory\nand a long story")

    workplaces.write_parameters(workplaces.ours())
    monkeypatch.setattr(trying.Improver, "run", broken)
    begin(client, "a tree")
    assert ended(client)["problem"] == "RuntimeError: out of memory"


def test_nothing_is_tried_while_the_training_runs(client: TestClient) -> None:
    client.post("/training", json={}, headers=ORIGIN)
    assert begin(client, "a tree")[1]["detail"].startswith("the training is running")


def test_a_stranger_tries_nothing(stranger: TestClient) -> None:
    body = {"prompt": "a tree", "adapter": False}
    assert stranger.post("/try/prompts", json=body, headers=ORIGIN).status_code == 401
    for path in ("/try", "/try/state", "/try/images/1/0", "/static/try.js"):
        assert stranger.get(path).status_code == 401
    stranger.get(f"/?token={TOKEN}")
    for headers in ({}, {"origin": "http://evil.example"}, ORIGIN | {"host": "evil.example"}):
        assert stranger.post("/try/prompts", json=body, headers=headers).status_code == 403
    page = stranger.get("/try")
    assert "unsafe" not in page.headers["content-security-policy"] and 'maxlength="1000"' in page.text


def test_a_thread_is_begun_once(tmp_path: Path) -> None:
    tries = trying.Trying(lambda: "busy")
    with pytest.raises(UserError, match="busy"):
        tries.start("a tree", adapter=False)
    assert not tries.state().running
