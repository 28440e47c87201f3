"""The whole DAG on the quick profile: a fresh clone, one `dvc repro`, and what stands there afterwards."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from safetensors.numpy import load_file

from t2i_feedback import arms


def rows(clone, path):
    return [json.loads(line) for line in (clone.folder / path).read_text().splitlines()]


def results(clone):
    """Every metric, the bytes of what the loop drew, and the adapter's tensors; all else follows from them."""
    files = [*(clone.folder / "metrics").rglob("*.json"), *(clone.folder / "data/arms/validated").rglob("*.*")]
    adapter = load_file(clone.folder / "models/lora/pytorch_lora_weights.safetensors")
    return {str(path): path.read_bytes() for path in files} | {name: value.tobytes() for name, value in adapter.items()}


def test_repro_ends_with_a_report(finished):
    page = (finished.folder / "metrics/report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert not re.search(r"""(src|href)=["']https?:""", page)


@pytest.mark.parametrize("arm", arms.NAMES)
def test_every_arm_has_one_image_for_every_caption(finished, arm):
    captions = [row["caption_id"] for row in rows(finished, "data/dataset/evaluation.jsonl")]
    images = rows(finished, f"data/arms/{arm}/images.jsonl")
    assert sorted(row["caption_id"] for row in images) == sorted(captions)
    assert all((finished.folder / f"data/arms/{arm}" / row["image"]).exists() for row in images)


def test_round_1_of_validated_is_the_image_of_enhanced(finished):
    enhanced = {row["caption_id"]: row["image"] for row in rows(finished, "data/arms/enhanced/images.jsonl")}
    for row in rows(finished, "data/arms/validated/rounds.jsonl"):
        if row["round"] == 1:
            ours = (finished.folder / "data/arms/validated" / row["image"]).read_bytes()
            assert ours == (finished.folder / "data/arms/enhanced" / enhanced[row["caption_id"]]).read_bytes()


def test_best_of_n_has_the_same_budget_as_validated_and_the_prompt_of_round_1(finished):
    def count(arm):
        return sorted((row["caption_id"], row["round"]) for row in rows(finished, f"data/arms/{arm}/rounds.jsonl"))

    assert count("best_of_n") == count("validated")
    first = {row["caption_id"]: row["prompt"] for row in rows(finished, "data/prompts/prompts.jsonl")}
    assert all(row["prompt"] == first[row["caption_id"]] for row in rows(finished, "data/arms/best_of_n/rounds.jsonl"))


def test_best_of_n_keeps_the_highest_p_yes(finished):
    drawn = rows(finished, "data/arms/best_of_n/rounds.jsonl")
    for row in rows(finished, "data/arms/best_of_n/images.jsonl"):
        assert row["p_yes"] == max(other["p_yes"] for other in drawn if other["caption_id"] == row["caption_id"])


def test_fine_tuning_captions_and_evaluation_captions_are_disjoint(finished):
    finetune = rows(finished, "data/dataset/finetune.jsonl")
    evaluation = rows(finished, "data/dataset/evaluation.jsonl")
    for key in ("caption_id", "image_id", "caption"):
        assert not {row[key] for row in finetune} & {row[key] for row in evaluation}


def running(output):
    """The stages that DVC ran, or would have run."""
    return re.findall(r"Running stage '([^']+)'", output)


def test_a_second_repro_runs_nothing_but_the_check(finished):
    assert running(finished.run("dvc", "repro").stdout) == ["check"]


def test_a_checkpoint_that_was_trained_again_elsewhere_reruns_what_uses_it(finished, tmp_path_factory):
    """dvc.yaml names no such folder: stage `check` tells by its bytes."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "judge"
    shutil.copytree(finished.folder / "models/postcards/judge", elsewhere)
    params = finished.folder / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("models/postcards/judge", str(elsewhere)))
    try:
        finished.run("dvc", "repro", "calibrate", "calibrate_validator")
        assert running(finished.run("dvc", "repro", "calibrate", "calibrate_validator").stdout) == ["check"]
        card = elsewhere / "generation_config.json"
        card.write_text(card.read_text() + " ")
        again = running(finished.run("dvc", "repro", "calibrate", "calibrate_validator").stdout)
        assert again == ["check", "calibrate"], "the judge's stage and no other"
    finally:
        params.write_text(before)
        finished.run("dvc", "repro")


def test_metrics_and_plots_are_there_for_dvc(finished):
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json").stdout)
    files = shown[""]["data"]
    assert list(files) == ["metrics/headline.json"]
    found = files["metrics/headline.json"]["data"]
    assert set(arms.NAMES) <= set(found)
    numbers = [value for part in found.values() for value in (part.values() if isinstance(part, dict) else [part])]
    assert len(numbers) <= 40, "more than one screen of `dvc metrics diff`"
    assert finished.run("dvc", "plots", "show", "--json").stdout.strip() != "{}"


def runs_in_mlflow(finished):
    script = (
        "import mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "print('RUNS', sum('mlflow.parentRunId' not in run.data.tags for run in runs))"
    )
    return int(re.search(r"RUNS (\d+)", finished.run("python", "-c", script).stdout)[1])


def test_every_run_is_in_mlflow_once(finished):
    assert runs_in_mlflow(finished) == 1  # by the stage `report`, before dvc.lock had its entry
    finished.run("python", "-m", "t2i_feedback.tools.publish")
    assert runs_in_mlflow(finished) == 1


def test_numbers_of_other_parameters_are_not_published(finished):
    params = finished.folder / "params.yaml"
    before = params.read_text()
    params.write_text(re.sub(r"(?m)^  guidance: [\d.]+", "  guidance: 9.0", before, count=1))  # of the section model
    try:
        done = finished.run("python", "-m", "t2i_feedback.tools.publish", check=False)
    finally:
        params.write_text(before)
    assert done.returncode == 1
    assert re.search(r"nothing is published to MLflow: .*model\.guidance.* 9\.0.*dvc repro", done.stdout)
    assert runs_in_mlflow(finished) == 1


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("src/t2i_feedback/loop/rounds.py", r"stage (best_of_n|validate).* is out of date \(src/t2i_feedback/loop"),
        ("metrics/headline.json", r"stage report is out of date \(metrics/headline\.json"),
    ],
)
def test_numbers_of_other_code_are_not_published(finished, file, why):
    path = finished.folder / file
    before = path.read_text()
    path.write_text(before + "\n")
    try:
        done = finished.run("python", "-m", "t2i_feedback.tools.publish", check=False)
    finally:
        path.write_text(before)
    assert done.returncode == 1
    assert re.search(rf"nothing is published to MLflow: {why}.*dvc repro", done.stdout)
    assert runs_in_mlflow(finished) == 1


def test_two_processes_as_the_page_on_scaling_starts_them_draw_what_one_drew(finished):
    page = (finished.folder / "docs/scaling.md").read_text()
    (line,) = re.findall(r"^(T2I_LAUNCHER=.* dvc repro generate@raw)\b", page, re.MULTILINE)
    threads = f"OMP_NUM_THREADS={torch.get_num_threads()}"  # as many as the one process had
    again, lock = f"{threads} {line} --force --single-item", (finished.folder / "dvc.lock").read_bytes()
    ended = finished.run("bash", "-c", re.sub('".*"', "false", again), check=False)
    assert ended.returncode, "the launcher is what starts the stage"
    finished.run("bash", "-c", again)
    assert (finished.folder / "dvc.lock").read_bytes() == lock


def test_a_changed_parameter_reruns_only_what_depends_on_it(finished):
    params = finished.folder / "params.yaml"
    before = params.read_text()
    params.write_text(re.sub(r"(?m)^  grid: \d+", "  grid: 3", before))
    try:
        output = finished.run("dvc", "repro", "--dry").stdout
    finally:
        params.write_text(before)
    assert running(output) == ["check", "report"]


def test_a_wrong_parameter_is_one_clear_line_before_any_work(finished):
    params = finished.folder / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("max_rounds:", "max_round:"))
    try:
        done = finished.run("python", "-m", "t2i_feedback.stages.validate", "validated", check=False)
    finally:
        params.write_text(before)
    assert done.returncode == 1
    assert "stage1.max_round: unknown key" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(("stage", "begun"), [("validate@validated", "*.png"), ("finetune", "checkpoint-*")])
def test_killing_a_stage_and_running_again_ends_with_the_same_results(finished, stage, begun):
    """Both times with --force: DVC would else restore the stage from its run cache, and nothing would be taken up."""
    expected = results(finished)
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", stage],
        cwd=finished.folder,
        env=finished.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    partial = finished.folder / ".cache/partial"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not any(partial.rglob(begun)):
        time.sleep(0.02)
    assert process.poll() is None, "the stage ended before it could be interrupted"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for lock in (finished.folder / ".dvc/tmp").glob("*lock"):
        lock.unlink()
    unfinished = [path for path in partial.iterdir() if path.is_dir()]
    assert [path.name.rpartition("-")[0] for path in unfinished] == [stage]
    finished.run("dvc", "repro", "--force", "--single-item", stage)
    assert not unfinished[0].exists(), "the stage did not take up its unfinished work"
    assert results(finished) == expected
