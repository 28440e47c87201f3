"""The rehearsal in its short form: `make table1` for `raw` and the two rows of one entry, with stand-ins."""

import json
import subprocess

import pytest
import warm

from rehearsal import chat, clone


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory):
    """The clone after `make table1 ROWS=gpt4`, its server, and the exit status."""
    with clone.ready(tmp_path_factory.mktemp("rehearsal")) as there:
        there.environment.update(warm.environment(there.environment))
        there.environment["T2I_STATUS"] = str(there.make("table1", "ROWS=gpt4"))
        yield there


def table(there: clone.Clone) -> dict:
    return json.loads((there.folder / "metrics/table1.json").read_text())


def test_the_rows_that_were_asked_for_are_there_beside_the_papers(rehearsed: clone.Clone) -> None:
    assert rehearsed.environment["T2I_STATUS"] == "0"
    rows = {tuple(row["names"]): row for row in table(rehearsed)["rows"]}
    there = [names for names, row in rows.items() if row["ours"]]
    assert there == [("None", "None"), ("GPT-4", "None"), ("GPT-4", "GPT-4")]
    for names in there:
        assert rows[names]["ours"]["fid"]["value"] > 0 and rows[names]["n"] == 24
        assert {"fid", "is"} <= rows[names]["difference"].keys()
        assert rows[names]["card"]["extractor"] == "inception-v3-compat"
    assert rows["GPT-4", "GPT-4"]["card"]["validator_reading"] == "probability"
    assert rows["CogVLM", "CogVLM"]["missing"].startswith("not run")


def test_everything_is_stamped(rehearsed: clone.Clone) -> None:
    assert (rehearsed.folder / "metrics/table1.md").read_text().startswith("# REHEARSAL. Table 1")
    assert table(rehearsed)["stamp"] == "REHEARSAL"
    assert {run["tags"]["t2i.stamp"] for run in runs(rehearsed)} == {"REHEARSAL"}


def test_each_experiment_is_one_mlflow_run_named_by_its_row(rehearsed: clone.Clone) -> None:
    assert sorted(run["name"] for run in runs(rehearsed)) == ["rehearsal-gpt4", "rehearsal-raw"]


def test_what_the_rows_share_is_made_once(rehearsed: clone.Clone) -> None:
    assert {name: rehearsed.times_run(name) for name in ("data", "reference", "generate@raw", "enhance")} == {
        "data": 1,
        "reference": 1,
        "generate@raw": 1,
        "enhance": 1,
    }


def test_the_workspace_is_left_alone(rehearsed: clone.Clone) -> None:
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=rehearsed.folder, capture_output=True, text=True)
    names = [line.split()[-1] for line in changed.stdout.splitlines()]
    assert names == ["metrics/table1.csv", "metrics/table1.json", "metrics/table1.md"]


def test_the_key_of_the_stand_in_for_gpt_4_is_in_no_file(rehearsed: clone.Clone) -> None:
    logs = (rehearsed.folder / ".cache/tables").glob("*.log")
    assert not any(f"Bearer {chat.KEY}" in log.read_text() for log in logs)


def runs(there: clone.Clone) -> list[dict]:
    """Those of MLflow that are no stage's."""
    script = (
        "import json, mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "found = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print(json.dumps([{'name': r.info.run_name, 'tags': r.data.tags} for r in found"
        " if 'mlflow.parentRunId' not in r.data.tags]))"
    )
    done = subprocess.run(
        ["python", "-c", script],
        cwd=there.folder,
        env=there.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)
