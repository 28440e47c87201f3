import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import workplaces
from dvc.utils.serialize import dump_yaml, load_yaml
from made_up_run import REPOSITORY, STAGES, Stage, write_lock, write_run

from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.stages import report
from t2i_feedback.tools import publish as tool
from t2i_feedback.tracking import publish, runs

pytestmark = pytest.mark.slow  # needs MLflow

UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root whose name has a space, while the current directory is a temporary run's."""
    for variable in ("MLFLOW_TRACKING_URI", "T2I_NO_TRACKING", "DVC_EXP_NAME", "RANK"):
        monkeypatch.delenv(variable, raising=False)
    root, work = tmp_path / "my repository", tmp_path / "temporary"
    root.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("DVC_ROOT", str(root))
    workplaces.furnish()
    return root


def type_in(before: str, after: str) -> None:
    """Change params.yaml by hand."""
    text = paths.PARAMS.read_text()
    assert text.count(before) == 1
    paths.PARAMS.write_text(text.replace(before, after))


def client():
    from mlflow.tracking import MlflowClient

    return MlflowClient(runs.uri())


def all_runs() -> list:
    found = client().get_experiment_by_name(runs.EXPERIMENT)
    assert found
    return list(client().search_runs([found.experiment_id]))


# ------------------------------------------------------------------------------------------------ identity


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True)


@pytest.fixture
def code(root: Path) -> Path:
    """A file of the stages' code, of a copy of its own."""
    Path("src").unlink()
    file = Path("src/t2i_feedback/foundation/a.py")
    for name in (file, *map(Path, ("dvc.lock", "metrics/a.json", "README.md"))):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text("{}\n")
    return file


def test_identity_follows_code_and_params_and_ignores_results(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "--quiet")
    git("add", "src", "dvc.yaml", "dvc.lock", "metrics", "README.md")
    git("commit", "--quiet", "--message=first")
    p = workplaces.ours()
    first = runs.identify(p, {})
    assert len(first.sha) == 40
    for name in ("metrics/a.json", "README.md"):
        Path(name).write_text("2\n")
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    git("add", "README.md")
    git("commit", "--quiet", "--message=words")
    assert runs.identify(p, {}).key == first.key
    assert runs.identify(p, {}).name == "bold-arm"
    assert runs.identify(p | {"seed": 1}, {}).key != first.key
    assert runs.identify(p, {"model.name": "retrained"}).key != first.key
    code.write_text("2\n")
    assert runs.identify(p, {}).key != first.key


@pytest.mark.parametrize("refused", [True, False])
def test_code_that_git_does_not_know_is_another_run(code: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """An untracked new file, and a repository that git will not read (another owner's)."""
    git("init", "--quiet")
    if refused:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    first = runs.identify(workplaces.ours(), {})
    code.with_name("new.py").write_text("3\n")
    assert runs.identify(workplaces.ours(), {}).key != first.key
    assert first.sha == "none"


def test_a_data_set_elsewhere_is_known_by_what_dvc_noted_and_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large, and the identity is asked for several times a run."""
    photos = root / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("an image")
    changed = workplaces.ours()
    changed["data"] |= {"source": "folder", "path": str(photos)}
    workplaces.write_parameters(changed)
    read: list[str] = []
    monkeypatch.setattr(runs.files, "digest", lambda path: read.append(str(path)) or "x")
    runs.identify(changed, {})
    assert "src/t2i_feedback/foundation" in read and str(photos) not in read


def test_identity_outside_of_a_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert runs.identify(workplaces.ours(), {}).sha == "none"


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/mlflow.db", "sqlite:///{root}/runs/mlflow.db"),
        ("sqlite:////else/mlflow.db", "sqlite:////else/mlflow.db"),
        ("", "sqlite:///{root}/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
    ],
)
def test_a_relative_place_is_the_repositorys_also_in_a_temporary_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: str, means: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert runs.uri() == means.format(root=root)


@pytest.mark.parametrize("given", ["mlruns", "./mlruns", "file:mlruns", "file:./mlruns"])
def test_a_relative_folder_is_the_repositorys_too(root: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert runs.uri() == (root / "mlruns").as_uri()


def test_an_experiment_that_was_deleted_is_restored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    client().delete_experiment(client().get_experiment_by_name(runs.EXPERIMENT).experiment_id)
    assert publish.publish()
    assert "had been deleted, and is restored" in capsys.readouterr().err
    assert len(all_runs()) == 1


@pytest.mark.usefixtures("root")
def test_params_are_flat_short_and_only_of_mllms_in_use() -> None:
    p = workplaces.ours()
    p["finetune"]["preference"] = "x" * 7000
    flat = runs.flatten(p)
    assert flat["stage1.max_rounds"] == str(p["stage1"]["max_rounds"])
    assert len(flat["finetune.preference"]) == runs.VALUE_LIMIT
    assert {key.split(".")[1] for key in flat if key.startswith("mllms.")} == {"postcards", "postcards-judge"}


def test_passwords_are_not_shown() -> None:
    assert runs.shown("at http://me:secret@host:5000/x") == "at http://host:5000/x"


# ------------------------------------------------------------------------------------------------ publishing


def test_publishing_twice_is_once_and_other_params_are_another_run(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    assert publish.publish()
    assert publish.publish()
    [run] = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["arms.raw.fid"] == pytest.approx(30.123)
    assert run.data.params["finetune.judge"] == "postcards"
    assert run.data.tags["templates"] == "postcards 0123456789ab"
    curve = client().get_metric_history(run.info.run_id, "finetune.curve.reward_mean")
    assert [point.step for point in curve] == list(range(1, 11))
    artifacts = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "models/lora/history.jsonl").exists()
    assert not (Path.cwd() / "mlartifacts").exists()
    assert not (Path.cwd() / "mlruns").exists()
    type_in("seed: 20260", "seed: 20261")
    write_lock(STAGES)
    assert publish.publish()
    assert len(all_runs()) == 2


def published() -> subprocess.CompletedProcess:
    """What `make publish` does."""
    command = [sys.executable, "-m", "t2i_feedback.tools.publish"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_numbers_of_other_parameters_are_no_record_of_the_present_ones(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    type_in("  guidance: 2.0", "  guidance: 9.0")
    type_in("  epochs: ", "  epochs: 1")
    done = published()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "made with model.guidance: 2.0, and params.yaml has 9.0 (1 more keys differ)" in line
    assert line.endswith("run `dvc repro` first")
    assert not (root / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("caption: shortest", "caption: random", r"data\.caption"),
        ("max_rounds: ", "max_rounds: 1", r"stage1\.max_rounds"),
    ],
)
def test_what_the_measured_images_were_made_with_counts_too(root: Path, before: str, after: str, key: str) -> None:
    write_run(Path.cwd(), captions=4)
    type_in(before, after)
    with pytest.raises(UserError, match=key):
        tool.main()


def test_a_file_that_no_stage_left_so_is_no_evidence(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    file = paths.NUMBERS
    file.write_text(file.read_text().replace("0.", "1."))
    with pytest.raises(UserError, match=rf"{file} is not as dvc\.lock has it; run `dvc repro` first"):
        tool.main()
    assert not (root / "mlflow.db").exists()


@pytest.mark.parametrize(("missing", "file"), [("finetune", paths.ADAPTER), ("report", paths.NUMBERS)])
def test_what_dvc_lock_does_not_know_is_not_published(root: Path, missing: str, file: Path | str) -> None:
    write_run(Path.cwd(), captions=4)
    write_lock({name: entry for name, entry in STAGES.items() if name != missing})
    with pytest.raises(UserError, match=str(file)):
        tool.main()
    Path("dvc.lock").unlink()
    with pytest.raises(UserError, match=r"metrics/numbers\.json \(and 1 more\) is not as dvc\.lock has it"):
        tool.main()
    Path("dvc.lock").write_text("stages: {")
    with pytest.raises(UserError, match=r"dvc\.lock is not YAML"):
        tool.main()
    assert not (root / "mlflow.db").exists()


def test_a_stage_that_dvc_yaml_has_no_more_does_not_count(root: Path) -> None:
    """DVC keeps its entry in dvc.lock, with parameters that nobody reads."""
    write_run(Path.cwd(), captions=4)
    write_lock({"generate_raw": Stage(("model",), (paths.arm("raw"),)), **STAGES})
    locked = json.loads(json.dumps(load_yaml(paths.LOCK)))
    locked["stages"]["generate_raw"]["params"]["params.yaml"]["model"]["steps"] = 7
    dump_yaml(paths.LOCK, locked)
    publish.check()


def test_numbers_that_dvc_writes_otherwise_are_the_same(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    type_in("  guidance: 2.0", "  guidance: 2e0")
    type_in("safety_checker: off", "safety_checker: 'off'")
    publish.check()


def test_the_papers_tables_are_no_numbers_of_this_run(root: Path) -> None:
    write_run(Path.cwd(), captions=4)
    (paths.METRICS / "table1.json").write_text('{"rows": {"fid": 1.0}}')
    publish.check()
    assert not any("table1" in name for name in publish.metrics())


def test_the_report_publishes_before_dvc_has_its_entry(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While `dvc repro` runs it: dvc.lock has the present entries of all stages but the one that runs."""
    write_run(Path.cwd(), captions=4)
    report.main()
    write_lock(STAGES | {"report": Stage(("seed", "report"), (paths.NUMBERS, paths.REPORT))})
    type_in("  grid: ", "  grid: 1")
    report.main()
    assert len(all_runs()) == 2
    with pytest.raises(UserError, match=r"report\.grid"):
        tool.main()
    type_in("  guidance: 2.0", "  guidance: 9.0")
    capsys.readouterr()
    report.main()  # alone, as `dvc repro -s report` runs it
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: nothing is published to MLflow: ") and "model.guidance: 2.0" in line
    assert len(all_runs()) == 2


def test_publish_after_dvc_exp_run_finds_the_experiment_s_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    during = runs.parent_run()
    monkeypatch.delenv("DVC_EXP_NAME")
    assert runs.parent_run().run_id == during.run_id
    monkeypatch.setenv("DVC_EXP_NAME", "calm-leg")
    assert runs.parent_run().run_id != during.run_id


def test_a_stage_streams_into_one_child_however_often_it_starts(root: Path) -> None:
    def fail_after_one_epoch() -> None:
        with runs.stage_run("finetune") as stream:
            stream.log(1, {"reward_mean": 4.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_one_epoch()
    assert {run.info.status for run in all_runs()} == {"RUNNING", "FAILED"}
    with runs.stage_run("finetune") as stream:
        stream.log(2, {"reward_mean": 5.0})
    [child] = [run for run in all_runs() if runs.PARENT in run.data.tags]
    assert child.info.status == "FINISHED"
    assert child.data.tags[runs.PARENT] == runs.parent_run().run_id
    steps = client().get_metric_history(child.info.run_id, "reward_mean")
    assert [(point.step, point.value) for point in steps] == [(1, 4.0), (2, 5.0)]


def test_parallel_first_use(root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "t2i_feedback.tracking.runs"]
    started = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


# ------------------------------------------------------------------------------------------------ MLflow is down


def test_an_outage_is_one_warning_and_soon_over(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow.tracking  # noqa: F401  (its import is not what is timed)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    write_run(Path.cwd(), captions=4)
    started = time.monotonic()
    publish.publish()
    with runs.stage_run("finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert time.monotonic() - started < 30
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one per use
    assert all("publish again with `make publish`" in line for line in lines)


def test_a_stream_that_breaks_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, step: int, numbers: dict[str, float]) -> None:
            raise OSError("gone")

    stream = runs.Stream(Broken())  # type: ignore[arg-type]
    stream.log(1, {})
    stream.log(2, {})
    stream.finish("FINISHED")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("variable", "value"), [("T2I_NO_TRACKING", "1"), ("RANK", "1")])
def test_tracking_can_be_off(root: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with runs.stage_run("finetune") as stream:
        stream.log(1, {"reward_mean": 4.0})
    assert publish.publish() is False
    assert not (root / "mlflow.db").exists()
    assert not (paths.cache() / "mlflow.lock").exists()
