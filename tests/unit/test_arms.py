"""The arms are told apart in one table; dvc.yaml makes them as it says."""

import csv
import json
from pathlib import Path

import made_up_run
import pytest

from t2i_feedback import arms
from t2i_feedback.arms import Arm
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.stages import report

SEVENTH = Arm(
    name="enhanced_finetuned",
    label="enhanced and fine-tuned",
    colour="#CC79A7",
    prompts="enhanced",
    adapter=True,
    loop="rounds",
    marker="^",
    compared_with=("raw", "validated"),
    preference=("held_out_score",),
    may_collapse=True,
    row1=("{mllm}", "{mllm} (seventh)"),
    row2="{model}, seventh",
)


def test_names_labels_and_colours_are_told_apart() -> None:
    for values in zip(*((arm.name, arm.label, arm.colour) for arm in arms.ARMS), strict=True):
        assert len(set(values)) == len(arms.ARMS)


def test_an_arm_names_arms_that_are_there() -> None:
    for arm in arms.ARMS:
        named = {*arm.compared_with, arm.begins_as, arm.as_many_as} - {""}
        assert named <= set(arms.NAMES) - {arm.name}
        assert bool(arm.as_many_as) == (arm.loop == "choice")


def test_only_the_adapter_tells_the_finetuned_arm_from_the_base() -> None:
    assert (arms.base().name, arms.finetuned().name) == ("raw", "finetuned")


def test_an_unknown_arm_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"which arm\? one of raw, enhanced, .*, not 'row'"):
        arms.by_name("row")


@pytest.mark.slow
def test_a_seventh_arm_is_one_more_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_NO_TRACKING", "1")
    monkeypatch.setattr(arms, "ARMS", (*arms.ARMS, SEVENTH))
    made_up_run.write_run(tmp_path, captions=8)
    report.main()

    text, label = paths.REPORT.read_text(), SEVENTH.label
    assert f'<th scope="col">{label}</th>' in text  # a column of the arms' table and of the grid
    assert f"alignment: {label} − raw" in text
    assert f"alignment: {label} − validated" in text
    assert f"held-out judge’s score: {label} − raw" in text
    assert f"alignment: {label} ÷ raw" in text
    assert text.count(f"{label.capitalize()} against raw:") == 2  # verdicts of stage 1 and of fine-tuning
    assert "<td>postcards (seventh)</td>" in text
    assert "models/postcards/sd, seventh" in text
    assert f"validated, combined and {label} end with" in text
    assert f'<tr><th scope="row">{label}</th><td>1</td>' in text  # its rounds
    assert 'alt="Alignment with the caption, 95 % interval: raw 0.5' in text
    assert f", {label} 0." in text

    name = SEVENTH.name
    numbers = json.loads(paths.NUMBERS.read_text())["summary"]
    assert numbers.keys() >= {
        f"alignment_{name}_minus_raw",
        f"alignment_{name}_minus_validated",
        f"held_out_score_{name}_minus_raw",
        f"alignment_{name}_over_raw",
        f"diversity_{name}_over_raw",
        f"alignment_{name}_accepted_minus_rejected",
    }
    for series in ("arms", "rounds"):
        with (paths.PLOTS / f"{series}.csv").open() as file:
            assert [row["arm"] for row in csv.DictReader(file)][-1] == name
