import subprocess
from pathlib import Path

import pytest
import workplaces

from t2i_feedback.tracking import identity
from t2i_feedback.tracking.runs import parent_run

pytestmark = pytest.mark.slow  # needs git


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
    first = identity.identify(p, {})
    assert len(first.sha) == 40
    for name in ("metrics/a.json", "README.md"):
        Path(name).write_text("2\n")
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    git("add", "README.md")
    git("commit", "--quiet", "--message=words")
    assert identity.identify(p, {}).key == first.key
    assert identity.identify(p, {}).name == "bold-arm"
    assert identity.identify(p | {"seed": 1}, {}).key != first.key
    assert identity.identify(p, {"model.name": "retrained"}).key != first.key
    code.write_text("2\n")
    assert identity.identify(p, {}).key != first.key


@pytest.mark.parametrize("refused", [True, False])
def test_code_that_git_does_not_know_is_another_run(code: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """An untracked new file, and a repository that git will not read (another owner's)."""
    git("init", "--quiet")
    if refused:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    first = identity.identify(workplaces.ours(), {})
    code.with_name("new.py").write_text("3\n")
    assert identity.identify(workplaces.ours(), {}).key != first.key
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
    monkeypatch.setattr(identity.files, "digest", lambda path: read.append(str(path)) or "x")
    identity.identify(changed, {})
    assert "src/t2i_feedback/foundation" in read and str(photos) not in read


def test_identity_outside_of_a_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    assert identity.identify(workplaces.ours(), {}).sha == "none"


@pytest.mark.usefixtures("root")
def test_params_are_flat_short_and_only_of_mllms_in_use() -> None:
    p = workplaces.ours()
    p["finetune"]["preference"] = "x" * 7000
    flat = identity.flatten(p)
    assert flat["stage1.max_rounds"] == str(p["stage1"]["max_rounds"])
    assert len(flat["finetune.preference"]) == identity.VALUE_LIMIT
    assert {key.split(".")[1] for key in flat if key.startswith("mllms.")} == {"postcards", "postcards-judge"}


def test_publish_after_dvc_exp_run_finds_the_experiment_s_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "bold-arm")
    during = parent_run()
    monkeypatch.delenv("DVC_EXP_NAME")
    assert parent_run().run_id == during.run_id
    monkeypatch.setenv("DVC_EXP_NAME", "calm-leg")
    assert parent_run().run_id != during.run_id
