"""Against real git and DVC, in a repository of one stage."""

import json
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from made_up_run import write_run

from t2i_feedback import params
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.tools import compare

STAGE = """
stages:
  report:
    cmd: "true"
    params: [seed, report]
    metrics:
      - metrics/headline.json: {cache: false}
"""


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(key, "somebody")
    write_run(tmp_path, captions=4)
    write_text(paths.PIPELINE, STAGE)
    paths.LOCK.unlink()  # of the made-up run's other stages
    git("init", "--quiet")
    Repo.init().close()
    made(fid=30.0)


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def made(**numbers: float) -> None:
    """A run with the present parameters, as DVC notes it."""
    write_json(paths.HEADLINE, {"raw": numbers})
    with Repo() as repo:
        repo.commit(force=True)


def commit(*files: Path) -> None:
    git("add", *map(str, (*files, paths.PIPELINE, paths.PARAMS, paths.LOCK)))
    git("commit", "--quiet", "--message", "The first run")


@pytest.mark.slow
def test_a_changed_run_is_told_in_the_terminal_and_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    commit(paths.HEADLINE)
    before = params.load()
    seed, guidance = before.seed + 1, before.model.guidance + 1
    apply_overrides(paths.PARAMS, [f"seed={seed}", f"model.guidance={guidance}"])  # no stage here reads the second
    made(fid=28.5)
    compare.main()
    text = capsys.readouterr().out
    assert "(The first run)" in text
    assert ["seed", str(before.seed), str(seed)] in [line.split() for line in text.splitlines()]
    assert ["raw:", "FID", "30.00", "28.50", "−1.500"] in [line.split() for line in text.splitlines()]
    assert "guidance" not in text
    page = compare.COMPARED.read_text()
    assert "What differs from the run before" in page and "−1.500" in page


def test_the_same_run_differs_in_nothing_and_leaves_no_old_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    commit(paths.HEADLINE)
    write_text(compare.COMPARED, "of another comparison")
    compare.main()
    assert "nothing differs" in capsys.readouterr().out
    assert not compare.COMPARED.exists()


def test_without_a_run_before_there_is_nothing_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    compare.main()  # no commit at all
    commit()  # one without numbers
    compare.main()
    assert capsys.readouterr().out.count("there is no run before this one") == 2
    assert not compare.COMPARED.exists()


def test_a_stale_run_and_an_unknown_revision_are_refused() -> None:
    commit(paths.HEADLINE)
    with pytest.raises(UserError, match=r"nothing is compared: .*nowhere"):
        compare.main("nowhere")
    paths.HEADLINE.write_text(json.dumps({"raw": {"fid": 1.0}}))
    with pytest.raises(UserError, match=r"nothing is compared: stage report is out of date .*dvc repro"):
        compare.main()
