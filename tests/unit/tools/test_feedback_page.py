"""make feedback: scores reach the disk, training follows by itself, and nobody else gets in."""

import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
import workplaces
from fastapi.testclient import TestClient
from PIL import Image

from t2i_feedback import arms, params
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.checkpoints import ADAPTER_WEIGHTS
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.images import save_png
from t2i_feedback.foundation.rows import CaptionRow, ImageRow, write_rows
from t2i_feedback.reporting.preferred import Preferred, tally
from t2i_feedback.rewards.sheet import Sheet
from t2i_feedback.tools.feedback import __main__ as feedback
from t2i_feedback.tools.feedback import comparing
from t2i_feedback.tools.feedback.server import make_app
from t2i_feedback.tools.feedback.training import Training

PORT, TOKEN = 5123, "a-token"
HOSTILE = '</script><script>alert("x")</script>'
ORIGIN = {"origin": f"http://127.0.0.1:{PORT}"}


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    made = Sheet(tmp_path / "sheet", HOSTILE)
    made.enter([Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)], ["one", HOSTILE])
    return made


@pytest.fixture
def training(tmp_path: Path) -> Training:
    said = "print('finetune: epoch 3/8 reward 5'); print('bar 1%\\rbar 2%')"
    return Training([sys.executable, "-c", said], [sys.executable, "-c", "print('drawn')"], tmp_path / "log")


@pytest.fixture
def stranger(sheet: Sheet, training: Training) -> TestClient:
    """A client without the cookie."""
    app = make_app(sheet, training, 8, PORT, TOKEN)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    welcome = stranger.get(f"/?token={TOKEN}")
    assert welcome.status_code == 303 and welcome.headers["location"] == "/"
    cookie = welcome.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    return stranger


def names(client: TestClient) -> list[str]:
    return [one["image"] for one in client.get("/state").json()["waiting"]]


def test_a_score_is_on_the_disk_when_it_is_answered_and_can_be_taken_back(client: TestClient, sheet: Sheet) -> None:
    first, second = names(client)
    assert client.get(f"/images/{first}").content == (sheet.folder / first).read_bytes()
    state = client.post("/answers", json={"image": first, "score": 7.5}, headers=ORIGIN).json()
    assert sheet.read()[first].score == 7.5
    assert ([one["image"] for one in state["waiting"]], state["scored"], state["training"]) == ([second], 1, "none")
    client.post("/answers", json={"image": first, "score": None}, headers=ORIGIN)
    assert names(client) == [first, second]


def test_when_all_is_scored_training_starts_and_is_told(client: TestClient, training: Training) -> None:
    for name in names(client):
        state = client.post("/answers", json={"image": name, "score": 3}, headers=ORIGIN).json()
    assert state["training"] in ("running", "ended")
    while training.state() == "running":
        time.sleep(0.01)
    state = client.get("/state").json()
    assert (state["training"], state["epoch"], state["epochs"]) == ("ended", 3, 8)
    assert state["log"] == ["finetune: epoch 3/8 reward 5", "bar 2%"]


def test_training_that_runs_is_not_started_twice_and_ends_with_the_page(tmp_path: Path) -> None:
    sleeping = Training([sys.executable, "-c", "import time; time.sleep(60)"], [], tmp_path / "log")
    sleeping.start()
    process = sleeping._process
    sleeping.start()
    assert sleeping._process is process and sleeping.state() == "running"
    sleeping.end()
    assert sleeping.state() == "failed"


@pytest.mark.parametrize("score", [0, 10.5, "high", "nan", True])
def test_what_is_no_score_is_refused_and_not_kept(client: TestClient, sheet: Sheet, score: object) -> None:
    first = names(client)[0]
    assert client.post("/answers", json={"image": first, "score": score}, headers=ORIGIN).status_code == 422
    assert not sheet.answers.exists()


def test_without_the_token_nothing_is_told(stranger: TestClient) -> None:
    for path in ("/", "/state", "/static/page.js", "/images/x.png", "/?token=", "/?token=wrong"):
        found = stranger.get(path)
        assert found.status_code == 401 and HOSTILE not in found.text
    assert stranger.post("/answers", json={"image": "x", "score": 1}, headers=ORIGIN).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_name_does_not_lead_here(client: TestClient, host: str) -> None:
    assert client.get("/state", headers={"host": host}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", f"https://127.0.0.1:{PORT}"])
def test_another_page_cannot_answer_nor_start(client: TestClient, sheet: Sheet, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    body = {"image": names(client)[0], "score": 1}
    assert client.post("/answers", json=body, headers=headers).status_code == 403
    assert client.post("/training", json={}, headers=headers).status_code == 403
    assert not sheet.answers.exists()


@pytest.mark.parametrize(
    "path",
    ["/images/..%2Fscores.csv", "/images/scores.csv", "/images/%2Fetc%2Fpasswd", "/static/..%2Fserver.py", "/docs"],
)
def test_no_path_leads_out_of_the_folder(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_sheet_that_names_a_path_serves_none(client: TestClient, sheet: Sheet, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with sheet.path.open("a", encoding="utf-8") as file:
        file.write("../secret.png,p,\r\n")
    assert "../secret.png" in names(client)
    assert client.get("/images/..%2Fsecret.png").status_code == 404


def test_everything_is_escaped_and_nothing_from_elsewhere_may_run(client: TestClient) -> None:
    page = client.get("/")
    assert HOSTILE not in page.text and "&lt;/script&gt;" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not re.search(r"<[^>]* on\w+=", page.text)  # no handler in an attribute
    assert client.get("/state").headers["x-content-type-options"] == "nosniff"


def test_a_broken_sheet_is_said_and_nothing_starts(client: TestClient, sheet: Sheet) -> None:
    first = names(client)[0]
    sheet.path.write_text("image,prompt,score\nx.png,p,eleven\n")
    assert "eleven" in client.get("/state").json()["problem"]
    assert client.post("/answers", json={"image": first, "score": 1}, headers=ORIGIN).status_code == 422
    assert client.get("/state").json()["training"] == "none"


def test_a_preference_is_written_into_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplaces.enter(tmp_path, monkeypatch)
    monkeypatch.setattr("sys.argv", ["feedback"])
    with pytest.raises(UserError, match="make feedback PREFERENCE="):
        feedback.main()
    monkeypatch.setattr("sys.argv", ["feedback", "--epochs", "3"])
    with pytest.raises(UserError, match="go with PREFERENCE"):
        feedback.main()
    found = feedback._set("scenes at night", 8, 16, pairs=False).finetune
    assert found == params.load().finetune
    assert (found.preference, found.user, found.feedback_budget, found.epochs) == ("scenes at night", "file", 16, 8)


def draw_arms(count: int) -> None:
    """Held-out images of both arms: after fine-tuning they are darker."""
    paths.ADAPTER.mkdir(parents=True)
    (paths.ADAPTER / ADAPTER_WEIGHTS).write_bytes(b"weights")
    captions = [CaptionRow(caption_id=i, image_id=i, caption=f"caption {i}", image="") for i in range(count)]
    write_rows(paths.EVALUATION_CAPTIONS, captions)
    for arm, shade, adapter in ((arms.base(), 200, None), (arms.finetuned(), 20, comparing.adapter_digest())):
        folder = paths.arm(arm.name)
        rows = [ImageRow(caption_id=i, round=1, prompt="", image=f"images/{i}.png") for i in range(count)]
        write_rows(folder / "images.jsonl", rows)
        (folder / "images").mkdir()
        for row in rows:
            about = {"parameters": json.dumps({"adapter": adapter})}
            save_png(Image.new("RGB", (8, 8), (shade,) * 3), folder / row.image, about)


def test_before_and_after_are_compared_blind(
    client: TestClient, sheet: Sheet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert client.get("/state").json()["pairs"] == []
    draw_arms(30)
    order = client.get("/state").json()["pairs"]
    dark_sides = []
    for number in order:
        assert client.get(f"/pairs/{number}").json().startswith("caption ")
        shown = {side: client.get(f"/pairs/{number}/{side}").content for side in ("left", "right")}
        assert all(b"adapter" not in image and b"parameters" not in image for image in shown.values())
        shades = {side: Image.open(io.BytesIO(image)).convert("L").getpixel((0, 0)) for side, image in shown.items()}
        dark_sides.append(min(shades, key=shades.__getitem__))
        assert client.get("/state").json()["tally"] is None
        client.post("/pairs", json={"pair": number, "preferred": dark_sides[-1]}, headers=ORIGIN)
    assert 5 < dark_sides.count("left") < 25
    assert order == list(range(30)) and [pair.caption_id for pair in comparing.drawn_pairs()] != order
    found = client.get("/state").json()
    assert found["pairs"] == [] and (found["tally"]["after"], found["tally"]["before"]) == (30, 0)
    assert found["tally"]["low"] > 0.85  # Wilson's bound of 30 of 30 is 0.886

    (paths.ADAPTER / ADAPTER_WEIGHTS).write_bytes(b"trained again")  # its images are not drawn yet
    assert client.get("/state").json()["tally"] is None
    assert client.post("/pairs", json={"pair": 0, "preferred": "left"}, headers=ORIGIN).status_code == 422


def test_wilsons_interval_leaves_out_what_is_undecided() -> None:
    said = [Preferred(adapter="a", caption_id=i, preferred=x) for i, x in enumerate(
        ["after"] * 8 + ["before"] * 2 + ["neither"] * 5
    )]  # fmt: skip
    others = [Preferred(adapter="b", caption_id=0, preferred="before")]
    found = tally([said[-1].model_copy(update={"caption_id": 0}), *said, *others], "a")  # the last for a caption counts
    assert (found.after, found.before, found.neither, found.share) == (8, 2, 5, 0.8)
    assert found.low == pytest.approx(0.4902, abs=1e-4) and found.high == pytest.approx(0.9433, abs=1e-4)
    assert tally([], "a").share is None
