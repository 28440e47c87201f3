"""Named set-ups: the line that is printed and the file that is written say the same, and both are valid."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t2i_feedback import params
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.params import at, read
from t2i_feedback.tools import profile

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted(path.stem for path in (REPOSITORY / "profiles").glob("*.yaml"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["profile", *arguments])
    profile.main()


def write(name: str, text: str) -> None:
    Path(f"profiles/{name}.yaml").write_text(text)


def test_the_set_ups_of_every_published_family_are_shipped() -> None:
    assert {"paper", "sd35", "sdxl", "quick"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.slow
def test_a_profile_goes_on_top_of_what_dvc_exp_run_wrote(name: str) -> None:
    wanted = yaml.safe_load(profile.merge(name))
    apply_overrides("params.yaml", ["finetune.learning_rate=0.0007"])
    wanted["finetune"]["learning_rate"] = profile.overrides(name).get("finetune.learning_rate", 0.0007)
    assert yaml.safe_load(profile.merge(name)) == wanted


@pytest.mark.parametrize(
    ("name", "protocol", "count", "references", "splits"),
    [("coco30k", "coco30k-256", 30_000, 40_504, 2014), ("coco5k", "coco5k", 5_000, 5_000, 2017)],
)
def test_a_protocol_of_coco_goes_on_top_of_paper(
    name: str, protocol: str, count: int, references: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "paper", "--apply")
    run(monkeypatch, name, "--apply")
    data = params.load().data
    assert (data.evaluation_captions, data.reference_images, data.finetune_captions) == (count, references, 5000)
    assert params.load().evaluate.protocol == protocol
    assert (data.train_split, data.val_split, data.caption) == (f"train{splits}", f"val{splits}", "random")


@pytest.mark.parametrize("name", SHIPPED)
def test_an_applied_profile_is_valid_and_has_its_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, name, "--apply")
    params.load()
    written = yaml.safe_load(paths.PARAMS.read_text())
    for key, value in profile.overrides(name).items():
        assert at(written, key) == value


@pytest.mark.parametrize("name", ["sd35", "sdxl"])
def test_every_value_of_a_published_model_has_its_source_or_reason(name: str) -> None:
    lines = Path(f"profiles/{name}.yaml").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r" +\w+: [^#]", line):
            assert " # " in line or before.lstrip().startswith("#"), line


@pytest.mark.parametrize("name", ["sd35", "sdxl"])
def test_a_published_model_replays_in_the_batches_of_its_rollouts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, name, "--apply")
    p = params.load()
    assert p.finetune.train_batch_size == p.model.batch_size
    assert (p.finetune.images_per_epoch // p.finetune.updates_per_epoch) % p.model.batch_size == 0
    assert p.finetune.steps_of(p.model.steps) < p.model.steps


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.slow
def test_the_printed_line_gives_dvc_the_same_params(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(profile.command(name))
    assert words[:3] == ["dvc", "exp", "run"]
    shutil.copy(paths.PARAMS, "by_dvc.yaml")
    apply_overrides(Path("by_dvc.yaml"), [word for word in words[3:] if word != "-S"])
    run(monkeypatch, name, "--apply")
    assert yaml.safe_load(Path("by_dvc.yaml").read_text()) == yaml.safe_load(paths.PARAMS.read_text())


def test_one_parameter_varied_by_dvc_is_one_line_of_git_diff() -> None:
    before = paths.PARAMS.read_text().splitlines()
    apply_overrides("params.yaml", ["finetune.learning_rate=0.0007"])
    after = paths.PARAMS.read_text().splitlines()
    assert [b for a, b in zip(before, after, strict=True) if a != b] == ["  learning_rate: 0.0007"]


AWKWARD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])) | st.text("\\\"'${}[],#: a\n")


@given(st.lists(AWKWARD | st.lists(AWKWARD, max_size=3) | st.floats(allow_nan=False, allow_infinity=False), max_size=9))
@example(["bright café “scenes” at night\n", 0.00003, True, None])
@settings(max_examples=60)  # DVC's reader takes its time
def test_any_value_survives_the_printed_line(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, keys = Path(folder, "params.yaml"), [f"key{number}" for number in range(len(values))]
        file.write_text("".join(f"{key}: none\n" for key in keys))
        options = [f"{key}={profile.as_override(value)}" for key, value in zip(keys, values, strict=True)]
        apply_overrides(file, options)
        assert (read(file) or {}) == dict(zip(keys, values, strict=True))


def test_the_printed_line_gives_an_experiment_that_is_found_again() -> None:
    """The tables compare an experiment's params.yaml, written by DVC, with the profile's values."""
    write(
        "odd", """finetune: {preference: "bright café, 'sharp'", lora_targets: [to_q, to_out.0], kl_weight: 0.00003}"""
    )
    wanted = profile.changed(profile.overrides("odd"))
    apply_overrides(paths.PARAMS, shlex.split(profile.command("odd"))[4::2])
    assert read() == wanted


def test_a_key_that_params_does_not_spell_out_is_added() -> None:
    write("new", "mllms: {postcards: {max_new_tokens: 40}, other: {backend: local, model: here}}")
    assert "max_new_tokens: 40" in profile.merge("new")
    assert "-S +mllms.postcards.max_new_tokens=40 " in profile.command("new")
    assert profile.command("new").endswith("-S +mllms.other.backend=local -S +mllms.other.model=here")


@pytest.mark.parametrize("name", SHIPPED)
def test_applying_keeps_every_comment_and_writes_as_dvc_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = paths.PARAMS.read_text().splitlines()
    run(monkeypatch, name, "--apply")
    applied = paths.PARAMS.read_text()
    comments = [line.partition(" # ")[2] for line in applied.splitlines()]
    assert [one for one in comments if one] == [one for line in before if (one := line.partition(" # ")[2])]
    apply_overrides("params.yaml", [f"seed={params.load().seed}"])
    assert paths.PARAMS.read_text() == applied


def test_a_later_profile_goes_on_top_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "paper", "coco30k", "--apply")
    both = paths.PARAMS.read_text()
    assert yaml.safe_load(both)["data"]["evaluation_captions"] == 30_000
    assert yaml.safe_load(both) == profile.changed(profile.overrides("paper", "coco30k"))
    assert profile.chosen("paper", "coco30k") == params.load()
    assert "-S model.size=512 " in (line := profile.command("paper", "coco30k")) and "=30000" in line
    run(monkeypatch, "coco30k", "--apply")
    assert paths.PARAMS.read_text() == both


def test_printing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = paths.PARAMS.read_bytes()
    run(monkeypatch, "paper")
    assert paths.PARAMS.read_bytes() == before


@pytest.mark.parametrize("name", ["", "papr", "../params"])
def test_an_unknown_profile_lists_those_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"no profile is called .* there are coco30k, coco5k, flow, paper, quick, sd35, "
    ):
        run(monkeypatch, *([name] if name else []))


def test_a_profile_that_does_not_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write("bad", "finetune: {epoch: 3, clip_range: 0}")
    before = paths.PARAMS.read_bytes()
    with pytest.raises(UserError, match=r"(?s)profiles/bad\.yaml has problems.*finetune\.clip_range.*finetune\.epoch"):
        run(monkeypatch, "bad", "--apply")
    assert paths.PARAMS.read_bytes() == before


@pytest.mark.parametrize("text", ["", "- a", "a: ["])
def test_a_profile_that_is_no_mapping_is_refused(text: str) -> None:
    write("bad", text)
    with pytest.raises(UserError, match=r"profiles/bad\.yaml"):
        profile.overrides("bad")


@pytest.mark.parametrize("text", ["- a\n", "finetune:\n", "finetune: {noise: none}\n"])
def test_a_params_yaml_without_its_sections_is_one_line(text: str) -> None:
    paths.PARAMS.write_text(text)
    write("deep", "finetune: {noise: {level: 0.5}}")
    for attempt in (profile.chosen, profile.merge):
        with pytest.raises(UserError, match=r"params\.yaml: finetune\.noise holds no keys"):
            attempt("deep")


def test_it_runs_as_a_program() -> None:
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "t2i_feedback.tools.profile", "quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dvc exp run -S data.finetune_captions=16 ")
