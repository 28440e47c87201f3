import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tracked
import warm
from made_up_run import REPOSITORY, write_run

from t2i_feedback.foundation import paths
from t2i_feedback.tracking import publish, store
from t2i_feedback.tracking.runs import Run

pytestmark = pytest.mark.slow  # needs MLflow


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/mlflow.db", "sqlite:///{root}/runs/mlflow.db"),
        ("sqlite:////else/mlflow.db", "sqlite:////else/mlflow.db"),
        ("", "sqlite:///{root}/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
        ("databricks", "databricks"),
        ("databricks-uc", "databricks-uc"),
        ("uc", "uc"),
        ("databricks://profile", "databricks://profile"),
        ("arn:aws:sagemaker:eu:1:mlflow-tracking-server/x", "arn:aws:sagemaker:eu:1:mlflow-tracking-server/x"),
    ],
)
def test_a_relative_place_is_the_repositorys_also_in_a_temporary_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: str, means: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.uri() == means.format(root=root)


@pytest.mark.parametrize("given", ["mlruns", "./mlruns", "file:mlruns", "file:./mlruns"])
def test_a_relative_folder_is_the_repositorys_too(root: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.uri() == (root / "mlruns").as_uri()


@pytest.mark.parametrize("name", ["ws_feature%2Fx", "a b#c%41 ü?x"])
@pytest.mark.parametrize("given", ["", "sqlite:///mlflow.db?timeout=30"])
def test_runs_are_kept_in_a_repository_with_any_name(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str
) -> None:
    here = root.rename(root.with_name(name))
    beside = sorted(here.parent.iterdir())
    monkeypatch.setenv("DVC_ROOT", str(here))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.database() == here / "mlflow.db"
    Run(*store.connect(), "").child("stage").keep([paths.PARAMS])
    assert list(here.glob("mlartifacts/*/artifacts/params.yaml"))
    assert sorted(here.iterdir()) == [here / ".cache", here / "mlartifacts", here / "mlflow.db"]
    assert sorted(here.parent.iterdir()) == beside


@pytest.mark.parametrize("given", ["mlruns", "{root}/mlruns", "file:///mlruns"])
def test_a_plain_folder_is_refused_in_words(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given.format(root=root))
    write_run(Path.cwd(), captions=4)
    assert not publish.publish()
    (line,) = capsys.readouterr().err.splitlines()
    assert "no plain folder: set MLFLOW_TRACKING_URI=sqlite:///mlflow.db" in line


def test_only_a_database_and_a_folder_have_their_artifacts_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "sqlite:////else/mlflow.db", "postgresql+psycopg2://me@host/runs", "mlruns", "/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert not store.served()
    for given in ("http://host:5000", "https://host", "databricks", "databricks://profile", "uc:http://host", "arn:x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert store.served()


def test_an_experiment_that_was_deleted_is_restored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    tracked.client().delete_experiment(tracked.client().get_experiment_by_name(store.EXPERIMENT).experiment_id)
    assert publish.publish()
    assert "had been deleted, and is restored" in capsys.readouterr().err
    assert len(tracked.parents()) == 1


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """File -> when it was written, and its inode."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


@pytest.mark.parametrize("bring", [shutil.copytree, shutil.move])
def test_the_artifacts_of_a_copied_or_moved_repository_are_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bring: Callable[[Path, Path], Path]
) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    here = root.with_name("brought # here")
    bring(root, here)
    before = contents(root)
    monkeypatch.setenv("DVC_ROOT", str(here))
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", {})  # as in another process
    (numbers,) = here.glob("mlartifacts/*/artifacts/numbers.json")
    numbers.unlink()
    assert publish.publish()
    assert numbers.exists()
    assert contents(root) == before
    assert len(tracked.parents()) == 1
    with closing(sqlite3.connect(here / "mlflow.db")) as database:
        assert not [line for line in database.iterdump() if root.as_uri() in line]
    assert capsys.readouterr().err.count(f"{root.as_uri()}/mlartifacts") == 1
    assert publish.publish()
    assert capsys.readouterr().err == ""


def test_artifacts_stay_where_a_database_elsewhere_has_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = root.with_name("shared.db")
    (root / "mlflow.db").rename(shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    store.connect()
    monkeypatch.setenv("DVC_ROOT", str(root.with_name("another repository")))
    client, experiment = store.connect()
    assert client.get_experiment(experiment).artifact_location == (root / "mlartifacts").as_uri()
    assert capsys.readouterr().err == ""


TOKEN = "eyJhbGciOiJSUzI1NiJ9." + "QUJDREVG" * 40


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("http://me:secret@host:5000/x", "http://host:5000/x"),
        (f"http://ci:{TOKEN}@host", "http://host"),
        ("http://token@host", "http://host"),
        ("http://u:s3cr@tPASS@host:9", "http://host:9"),
        ("postgresql://mlflow:9aF/k2Pq+Zx@db.internal:5432/mlflow", "postgresql://db.internal:5432/mlflow"),
        ("postgresql://u:a%2Fb?c#d@db/mlflow", "postgresql://db/mlflow"),
        ("http://host:5000", "http://host:5000"),
        ("http://host/team@work", "http://host/team@work"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch, given: str, means: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.shown(f"at {given}") == f"at {means}"


def test_a_password_is_not_shown_however_an_error_quotes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:9aF%2Fk2Pq@tPASS@db/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcd1234\n")
    text = "mlflow: '9aF/k2Pq' 9aF%2Fk2Pq@x, no host tPASS@db, Bearer abcd1234\\n, http://a:b@c@proxy"
    assert store.shown(text) == "mlflow: '***' ***@x, no host ***@db, Bearer ***\\n, http://proxy"


def test_a_warning_has_no_part_of_a_long_password(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.UNREACHABLE.replace("//", f"//ci:{TOKEN}@"))
    write_run(Path.cwd(), captions=4)
    assert not publish.publish()
    said = capsys.readouterr().err
    assert f"API request to {tracked.UNREACHABLE}/api" in said
    assert TOKEN[:8] not in said


class Server(BaseHTTPRequestHandler):
    """Says of every run that it is there."""

    def do_GET(self) -> None:
        info = {"run_id": "7", "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active"}
        answer = {"run": {"info": info}, "run_info": info, "experiment": {"experiment_id": "1"}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_mlflow_itself_does_not_show_the_password_of_a_server(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
        client, experiment = store.connect()
        Run(client, experiment, "7").finish("FINISHED")
        server.shutdown()
    assert "secret" not in "".join(capsys.readouterr())


def test_no_traceback_shows_a_password(root: Path) -> None:
    address = tracked.UNREACHABLE.replace("//", "//me:secret@")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "MLFLOW_TRACKING_URI": address}
    command = ["python", "-m", "t2i_feedback.tracking.store"]
    done = subprocess.run(command, env=warm.environment(environment), capture_output=True, text=True)
    assert done.returncode == 1
    assert "did not take this" in done.stderr
    assert "secret" not in done.stderr


def test_parallel_first_use(untracked: Path) -> None:
    environment = warm.environment(os.environ | {"PYTHONPATH": str(REPOSITORY / "src")})
    command = ["python", "-m", "t2i_feedback.tracking.store"]
    started = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
