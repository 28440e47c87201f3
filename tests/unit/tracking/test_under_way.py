from pathlib import Path

import pytest
import tracked

from t2i_feedback.foundation import paths
from t2i_feedback.tracking import publish, under_way
from t2i_feedback.tracking.runs import parent_run
from t2i_feedback.tracking.streaming import stage_run

pytestmark = pytest.mark.slow  # needs MLflow


def lock_files() -> list[Path]:
    return sorted((paths.cache() / "mlflow").glob("*.lock"))


def statuses() -> set[str]:
    return {run.info.status for run in tracked.all_runs()}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ZeroDivisionError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_stage_ends_its_run_and_the_parent(root: Path, error: BaseException | None, status: str) -> None:
    def stage() -> None:
        with stage_run("finetune"):
            assert statuses() == {"RUNNING"}
            assert len(lock_files()) == 2
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            stage()
    else:
        stage()
    assert statuses() == {status}
    assert lock_files() == []


def test_a_run_that_its_process_still_writes_to_is_left_alone(root: Path) -> None:
    with stage_run("finetune"):
        under_way.end_dead_runs()
        assert statuses() == {"RUNNING"}
        with under_way.under_way(parent_run()):  # another process publishes meanwhile
            pass
        assert len(lock_files()) == 2


def dead(run_id: str) -> Path:
    """What a process that died leaves."""
    file = under_way._file(run_id)
    file.touch()
    return file


def test_what_a_dead_process_leaves_is_ended_and_forgotten(root: Path) -> None:
    running, finished = parent_run(), parent_run().child("finished")
    running.begin()
    finished.finish("FINISHED")
    for run in (running, finished):
        dead(run.run_id)
    under_way.end_dead_runs()
    assert (running.status, finished.status) == ("KILLED", "FINISHED")
    assert lock_files() == []


def test_a_dead_process_ends_no_run_that_a_living_one_has_taken_up(root: Path) -> None:
    run = parent_run()
    dead(run.run_id)
    with under_way.under_way(run):
        dead(run.run_id)
        under_way.end_dead_runs()
        assert run.status == "RUNNING"
        assert len(lock_files()) == 1


def test_a_run_that_somebody_deleted_hinders_nobody(root: Path) -> None:
    run = parent_run()
    dead(run.run_id)
    dead("0" * 32)
    tracked.client().delete_run(run.run_id)
    under_way.end_dead_runs()
    assert lock_files() == []


def test_another_server_s_runs_wait_for_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = parent_run()
    run.begin()
    dead(run.run_id)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        under_way.end_dead_runs()
    assert run.status == "RUNNING"
    under_way.end_dead_runs()
    assert run.status == "KILLED"


def test_a_run_that_could_not_be_ended_is_ended_by_the_next_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow is away when the stage ends: one warning, and the stage is done all the same."""
    with stage_run("finetune"):
        (root / "mlflow.db").rename(root / "elsewhere.db")
    (line,) = capsys.readouterr().err.splitlines()
    assert "publish again with `make publish`" in line
    (root / "mlflow.db").unlink(missing_ok=True)
    (root / "elsewhere.db").rename(root / "mlflow.db")
    assert statuses() == {"RUNNING"}
    with stage_run("another"):
        pass
    assert {name: run.info.status for name, run in tracked.children().items()} == {
        "finetune": "KILLED",
        "another": "FINISHED",
    }


def test_publishing_ends_dead_runs_too(root: Path) -> None:
    from made_up_run import write_run

    write_run(Path.cwd(), captions=2)
    run = parent_run().child("finetune")
    run.begin()
    dead(run.run_id)
    assert publish.publish()
    assert run.status == "KILLED"
