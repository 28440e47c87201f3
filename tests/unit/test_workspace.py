"""Unfinished work: named by what it depends on, held by one process, and published in one step."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from pydantic import BaseModel

from t2i_feedback.foundation import workspace
from t2i_feedback.foundation.errors import UserError


class Section(BaseModel):
    steps: int = 20


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_the_same_parameters_and_inputs_have_the_same_name(here: Path) -> None:
    (here / "input").write_text("a")
    inputs = [here / "input"]
    assert workspace.digest([Section(), "raw", 7], inputs) == workspace.digest([Section(), "raw", 7], inputs)


def test_another_parameter_has_another_name() -> None:
    names = {
        workspace.digest(values, [])
        for values in ([Section()], [Section(steps=4)], [Section(), None], [Section(), "x"])
    }
    assert len(names) == 4


def test_another_input_has_another_name(here: Path) -> None:
    (here / "input").write_text("a")
    before = workspace.digest([], [here / "input"])
    (here / "input").write_text("b")
    assert workspace.digest([], [here / "input"]) != before


def test_a_folder_counts_with_everything_below_it(here: Path) -> None:
    (here / "folder" / "below").mkdir(parents=True)
    before = workspace.digest([], [here / "folder"])
    (here / "folder" / "below" / "file").write_text("a")
    assert workspace.digest([], [here / "folder"]) != before


def test_work_is_found_again_after_an_interruption() -> None:
    def interrupted() -> None:
        with workspace.partial("generate", "0123") as folder:
            (folder / "1.png").write_text("done")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with workspace.partial("generate", "0123") as folder:
        assert (folder / "1.png").read_text() == "done"


def test_work_of_another_name_starts_afresh() -> None:
    with workspace.partial("generate", "0123") as folder:
        (folder / "1.png").write_text("done")
    with workspace.partial("generate", "4567") as folder:
        assert not list(folder.iterdir())


def test_two_processes_do_not_share_work() -> None:
    with (
        workspace.partial("generate", "0123"),
        pytest.raises(UserError, match="generate is already running"),
        workspace.partial("generate", "0123"),
    ):
        pass


def test_a_full_disk_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 2**20))
    with pytest.raises(UserError, match="only 1 MiB are free"), workspace.partial("generate", "0123"):
        pass


def test_the_partial_work_lies_in_the_root_that_dvc_names(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(here / "elsewhere"))
    with workspace.partial("generate", "0123") as folder:
        assert folder.is_relative_to(here / "elsewhere" / ".cache")


def test_publishing_replaces_the_old_output_whole(here: Path) -> None:
    for name, file in (("finished", "new"), ("out", "old")):
        (here / name).mkdir()
        (here / name / file).write_text("")
    workspace.publish(here / "finished", here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["new"]
    assert sorted(path.name for path in here.iterdir()) == ["out"]


def test_publishing_makes_the_folders_above(here: Path) -> None:
    (here / "finished").mkdir()
    workspace.publish(here / "finished", here / "data" / "arms" / "raw")
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
    workspace.publish(here / "finished", here / "out")
    assert [path.name for path in (here / "out").iterdir()] == ["new"]
    assert not (here / "finished").exists()
