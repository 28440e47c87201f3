from pathlib import Path

import pytest
import tracked
from PIL import Image

from t2i_feedback.tracking.runs import PARENT, parent_run
from t2i_feedback.tracking.streaming import stage_run

pytestmark = pytest.mark.slow  # needs MLflow


def test_a_stage_streams_into_one_child_however_often_it_starts(root: Path) -> None:
    def fail_after_one_epoch() -> None:
        with stage_run("finetune") as stream:
            stream.log(1, {"reward_mean": 4.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_one_epoch()
    assert {run.info.status for run in tracked.all_runs()} == {"FAILED"}
    with stage_run("finetune") as stream:
        stream.log(2, {"reward_mean": 5.0})
    [child] = tracked.children().values()
    assert child.info.status == "FINISHED"
    assert child.data.tags[PARENT] == parent_run().run_id
    steps = tracked.client().get_metric_history(child.info.run_id, "reward_mean")
    assert [(point.step, point.value) for point in steps] == [(1, 4.0), (2, 5.0)]


def test_a_stream_that_breaks_warns_once_and_draws_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow goes away while the stage runs."""
    with stage_run("finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
        (root / "mlflow.db").rename(root / "elsewhere.db")
        stream.log(2, {"reward_mean": 4.0})
        stream.log(3, {"reward_mean": 4.0})
        stream.images(3, lambda: pytest.fail("drawn for nobody"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "publish again with `make publish`" in line


def squares(shade: int) -> dict[str, Image.Image]:
    return {text: Image.new("RGB", (8, 8), (shade, 0, 0)) for text in ("a red house, at night!", "a/b")}


def test_images_have_a_key_and_a_step_and_are_drawn_once(root: Path) -> None:
    drawn = []

    def draw(step: int) -> dict[str, Image.Image]:
        drawn.append(step)
        return squares(step)

    for _ in range(2):  # the stage is taken up
        with stage_run("finetune") as stream:
            for step in (0, 3):
                stream.images(step, lambda step=step: draw(step))
    assert drawn == [0, 3]
    [child] = tracked.children().values()
    run = parent_run().child("finetune")
    assert run.run_id == child.info.run_id
    assert run.images() == {(key, step) for key in ("1 a red house at night", "2 a/b") for step in (0, 3)}
    assert child.data.tags["mlflow.loggedImages"] == "True"


def test_what_a_stage_repeats_when_it_is_taken_up_is_not_logged_again(root: Path) -> None:
    for epochs in (1, 2):
        with stage_run("finetune") as stream:
            for epoch in range(1, epochs + 1):
                stream.log(epoch, {"reward_mean": float(epoch)})
    [child] = tracked.children().values()
    points = tracked.client().get_metric_history(child.info.run_id, "reward_mean")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 2.0)]
