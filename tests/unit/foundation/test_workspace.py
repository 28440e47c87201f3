"""Unfinished work: named by what it depends on, held by one process, and published in one step."""

import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Annotated

import pytest

from t2i_feedback.foundation import pipeline, workspace
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import CHECKPOINT, FREE, Keys, Section

PIPELINE = """
stages:
  draw:
    foreach:
      raw: {prompts: data/captions}
      enhanced: {prompts: data/prompts}
    do:
      cmd: PYTHONPATH=src python -m t2i_feedback.stages.draw ${key}
      deps: [src/drawing, "${item.prompts}"]
      params: [seed, model]
      outs: ["data/arms/${key}"]
  report:
    cmd: PYTHONPATH=src python -m t2i_feedback.stages.report
    deps: [src/reporting.py]
    params: [report]
"""


class Model(Section):
    name: Annotated[str, CHECKPOINT] = "checkpoint"
    steps: int = 20
    batch_size: Annotated[int, FREE] = 8


class Settings(Keys):
    seed: int = 1
    model: Model = Model()
    report: str = "grid"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("seed: 1")
    for name in ("src/drawing/pen.py", "src/reporting.py", "data/captions", "data/prompts", "checkpoint/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    return tmp_path


def key(settings: Settings = Settings(), arm: str = "raw") -> str:  # noqa: B008
    return workspace.key(pipeline.running("draw", arm), settings)


def test_the_same_parameters_and_inputs_have_the_same_name() -> None:
    assert key() == key()


def test_a_parameter_that_the_stage_lists_changes_the_name() -> None:
    assert len({key(), key(Settings(seed=2)), key(Settings(model=Model(steps=4)))}) == 3


def test_a_parameter_that_decides_nothing_or_that_the_stage_does_not_list_leaves_the_name() -> None:
    assert key() == key(Settings(model=Model(batch_size=1))) == key(Settings(report="none"))


@pytest.mark.parametrize("name", ["src/drawing/pen.py", "src/drawing/new.py", "data/captions", "checkpoint/weights"])
def test_what_the_stage_uses_changes_the_name(name: str, here: Path) -> None:
    before = key()
    (here / name).write_text("other bytes")
    assert key() != before


@pytest.mark.parametrize("name", ["src/reporting.py", "src/new.py", "data/prompts", "src/drawing/__pycache__/pen.pyc"])
def test_what_the_stage_does_not_use_leaves_the_name(name: str, here: Path) -> None:
    before = key()
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_text("other bytes")
    assert key() == before


def test_a_checkpoint_counts_wherever_it_lies_and_a_hub_id_by_its_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "weights").write_text("a")
    settings = Settings(model=Model(name=str(elsewhere)))
    before = key(settings)
    (elsewhere / "weights").write_text("retrained")
    assert key(settings) != before
    assert key(Settings(model=Model(name="owner/model"))) != key(Settings(model=Model(name="owner/other")))


def test_a_missing_input_is_named(here: Path) -> None:
    (here / "data/captions").unlink()
    with pytest.raises(UserError, match=r"data/captions is missing: run `dvc repro`"):
        key()


def test_an_unknown_argument_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"which arm\? draw knows raw, enhanced \(dvc.yaml\), not 'rwa'"):
        key(arm="rwa")


def unfinished(settings: Settings = Settings()):  # noqa: B008
    return workspace.unfinished(pipeline.running("draw", "raw"), settings)


def test_work_is_found_again_after_an_interruption() -> None:
    def interrupted() -> None:
        with unfinished() as folder:
            (folder / "1.png").write_text("done")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with unfinished() as folder:
        assert (folder / "1.png").read_text() == "done"


def test_work_of_another_name_starts_afresh() -> None:
    with unfinished() as folder:
        (folder / "1.png").write_text("done")
    with unfinished(Settings(seed=2)) as folder:
        assert not list(folder.iterdir())


def test_a_second_run_of_the_same_work_waits_for_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    held: list[str] = []

    def second() -> None:
        with unfinished():
            held.append("second")

    with unfinished():
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        held.append("first")
    other.join(10)
    assert held == ["first", "second"]
    assert capsys.readouterr().out.startswith("draw@raw is already running with these parameters: waiting")


def test_a_full_disk_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 2**20))
    with pytest.raises(UserError, match="only 1 MiB are free"), unfinished():
        pass


def test_the_partial_work_lies_in_the_root_that_dvc_names(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(here / "elsewhere"))
    with unfinished() as folder:
        assert folder.is_relative_to(here / "elsewhere" / ".cache")


def test_publishing_replaces_the_old_output_whole(here: Path) -> None:
    for name, file in (("finished", "new"), ("out", "old")):
        (here / name).mkdir()
        (here / name / file).write_text("")
    workspace.publish(pipeline.running("draw", "raw"), Settings(), here / "finished", here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["new"]
    assert not (here / "finished").exists() and not list(here.glob(".*.partial"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("params.yaml", "seed: 2\nmodel: {steps: 5}", "seed, model.steps changed"),
        ("src/drawing/pen.py", "b", "src/drawing changed"),
    ],
)
def test_what_was_edited_while_a_stage_ran_is_not_taken_for_what_it_ran_with(
    here: Path, file: str, text: str, said: str
) -> None:
    """DVC notes what stands in the files at the end."""
    stage = pipeline.running("draw", "raw")
    before = (here / file).read_text()
    (here / "finished").mkdir()
    (here / "params.yaml").write_text("seed: 1  # its own\nreport: list\nmodel: {batch_size: 2}\n")
    workspace.check_unedited(stage, Settings())  # a comment, a key of others, one that decides nothing
    (here / file).write_text(text)
    with pytest.raises(UserError, match=f"^{said} while this ran, so that nothing was made of it"):
        workspace.publish(stage, Settings(), here / "finished", here / "out")
    assert not (here / "out").exists()
    (here / file).write_text(before)
    workspace.publish(stage, Settings(), here / "finished", here / "out")
    assert (here / "out").is_dir()


def test_what_a_killed_process_half_wrote_is_not_taken_up() -> None:
    def die_in_the_midst() -> None:
        with unfinished() as folder:
            (folder / "arm").mkdir()
            (folder / "arm/.0001.png.1234abcd.partial").write_text("half")
            (folder / "arm/0000.png").write_text("whole")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die_in_the_midst()
    with unfinished() as folder:
        assert [path.name for path in (folder / "arm").iterdir()] == ["0000.png"]


def test_publishing_makes_the_folders_above(here: Path) -> None:
    (here / "finished").mkdir()
    workspace.publish(pipeline.running("draw", "raw"), Settings(), here / "finished", here / "data" / "arms" / "raw")
    assert (here / "data" / "arms" / "raw").is_dir()


def test_publishing_crosses_file_systems(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "finished").mkdir()
    (here / "finished" / "new").write_text("")
    rename = workspace.os.rename

    def refuse_the_first(source: Path, target: Path) -> None:
        if source == here / "finished":
            raise OSError("another file system")
        rename(source, target)

    monkeypatch.setattr(workspace.os, "rename", refuse_the_first)
    workspace.publish(pipeline.running("draw", "raw"), Settings(), here / "finished", here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["new"]
    assert not (here / "finished").exists()
