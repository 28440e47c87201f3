"""dvc.yaml against the code: a stage depends on all that it uses, on nothing else, and each key reruns what it must."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path

import imports
import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from pydantic import AliasPath

from t2i_feedback import arms
from t2i_feedback.foundation import checkpoints, params, paths, pipeline
from t2i_feedback.foundation.params import Keys
from t2i_feedback.foundation.pipeline import Stage
from t2i_feedback.params import Params

REPOSITORY = Path(__file__).parents[2]
SOURCES = "src/t2i_feedback/"
HARMLESS = {"model.device"}  # where it runs, not what it makes


def made_by(arm: arms.Arm) -> str:
    """The stage that makes the arm."""
    return {"none": f"generate@{arm.name}", "choice": arm.name, "rounds": f"validate@{arm.name}"}[arm.loop]


def made_and_evaluated(chosen: Callable[[arms.Arm], bool]) -> set[str]:
    names = [(made_by(arm), f"evaluate@{arm.name}") for arm in arms.ARMS if chosen(arm)]
    return {name for both in names for name in both}


DRAWN = {made_by(arm) for arm in arms.ARMS}
EVALUATED = {f"evaluate@{name}" for name in arms.NAMES}
LATER = made_and_evaluated(lambda arm: arm.draws_several)  # what depends on more than the first image
TRAINED = made_and_evaluated(lambda arm: arm.adapter) | {"finetune", "report"}
EVERYTHING = (
    {"data", "reference", "calibrate", "calibrate_validator", "enhance", "finetune", "report"} | DRAWN | EVALUATED
)

# A key of params.yaml -> exactly the stages that a change of it makes out of date, directly or through their inputs.
RERUNS = {
    "seed": EVERYTHING,
    "data.reference_images": EVERYTHING,
    "model.steps": EVERYTHING - {"data", "calibrate", "calibrate_validator", "reference"},
    "model.size": EVERYTHING - {"data", "calibrate", "calibrate_validator"},
    "stage1.max_rounds": LATER | {"report"},
    "stage1.questions": LATER | EVALUATED | {"report", "calibrate_validator"},
    "stage1.threshold": LATER | EVALUATED | {"report", "calibrate_validator"},
    "stage1.feedback": LATER | {"report"},
    "calibrate.images": TRAINED | {"calibrate", "calibrate_validator"},
    "calibrate.image_side": TRAINED | {"calibrate", "calibrate_validator"},
    "calibrate.levels": TRAINED | {"calibrate"},
    "calibrate.min_rank_correlation": TRAINED,
    "finetune.epochs": TRAINED,
    "finetune.learning_rate": TRAINED,
    "finetune.acquisition": TRAINED,
    "finetune.reward": TRAINED,
    "evaluate.resamples": EVALUATED | {"report"},
    **dict.fromkeys(
        (f"evaluate.{key}" for key in ("extractor", "size", "resizer", "weights")), {"reference", "report"} | EVALUATED
    ),
    **dict.fromkeys(
        (f"evaluate.{key}" for key in ("protocol", "clip_score", "vqa_score", "vqa_mllm", "questions")),
        EVALUATED | {"report"},
    ),
    "report.grid": {"report"},
    "mllms.llava15-7b.batch_size": set(),  # nobody uses it
}


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return {stage.name: stage for stage in read()}


def read() -> list[Stage]:
    return pipeline.stages(REPOSITORY / paths.PIPELINE, REPOSITORY / paths.PARAMS)


def module(stage: Stage) -> str:
    """The stage's own module, below the package."""
    return stage.program()[0].removeprefix("t2i_feedback.")


def settings(stage: Stage) -> type[Keys]:
    """The keys that the stage's code reads."""
    return importlib.import_module(stage.program()[0]).Settings


def keys(kind: type[Keys]) -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        alias = field.validation_alias
        found.add(".".join(map(str, alias.path)) if isinstance(alias, AliasPath) else name)
    return found


def rerun_by(key: str, stages: dict[str, Stage]) -> set[str]:
    """The stages that list the key, a section above it or a key below it, and all that depends on their outputs."""
    stale = {name for name, stage in stages.items() if any(_overlap(key, listed, ".") for listed in stage.params)}
    while True:
        made = {out for name in stale for out in stages[name].outs}
        further = {
            name
            for name, stage in stages.items()
            if name not in stale and any(_overlap(dep, out, "/") for dep in stage.deps for out in made)
        }
        if not further:
            return stale
        stale |= further


def _overlap(a: str, b: str, separator: str) -> bool:
    """Whether one is the other or lies in it."""
    return f"{a}{separator}".startswith(f"{b}{separator}") or f"{b}{separator}".startswith(f"{a}{separator}")


def used_files(stage: Stage) -> set[str]:
    """The source files that Python may load for the stage."""
    files = {imports.modules()[name] for name in imports.closure(module(stage)) if imports.is_code(name)}
    return {path.relative_to(REPOSITORY).as_posix() for path in files}


def test_the_dag_has_the_stages_of_the_plan(stages: dict[str, Stage]) -> None:
    assert set(stages) == EVERYTHING | {"check"}


def test_dvc_yaml_is_read_as_dvc_reads_it(stages: dict[str, Stage], tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()

    def relative(output) -> str:
        return Path(output.fs_path).relative_to(tmp_path).as_posix()

    with Repo(str(tmp_path)) as repo:
        by_dvc = {stage.name: stage for stage in repo.index.stages}
    assert list(by_dvc) == list(stages)
    for name, theirs in by_dvc.items():
        ours = stages[name]
        listed = [dep for dep in theirs.deps if isinstance(dep, ParamsDependency)]
        assert theirs.cmd == ours.command
        assert {relative(out) for out in theirs.outs} == set(ours.outs)
        assert {relative(dep) for dep in theirs.deps if dep not in listed} == set(ours.deps)
        assert {key for dep in listed for key in dep.params} == set(ours.params)


def test_a_stage_depends_on_every_module_that_it_uses_and_on_no_other(stages: dict[str, Stage]) -> None:
    wrong = []
    for name, stage in stages.items():
        used, listed = used_files(stage), [dep for dep in stage.deps if dep.startswith(SOURCES)]
        if name != "check":  # runs always, whatever it depends on
            wrong += [f"{name} uses {path}" for path in used if not any(_overlap(path, dep, "/") for dep in listed)]
        wrong += [f"{name} does not use {dep}" for dep in listed if not any(_overlap(dep, one, "/") for one in used)]
    assert wrong == []


def test_a_stage_depends_on_the_keys_that_it_reads_and_no_others(stages: dict[str, Stage]) -> None:
    listed = {
        name: {"mllms" if key.startswith("mllms.") else key for key in stages[name].params} for name in EVERYTHING
    }
    assert listed == {name: keys(settings(stages[name])) - HARMLESS for name in EVERYTHING}


def test_a_stage_depends_on_the_catalogue_entries_and_checkpoints_that_its_keys_name(stages: dict[str, Stage]) -> None:
    checked = {paths.CHECKED / key for key in checkpoints.digests(params.load(Params, REPOSITORY / paths.PARAMS))}
    wrong = []
    for name in EVERYTHING:
        stage, p = stages[name], params.load(settings(stages[name]), REPOSITORY / paths.PARAMS)
        entries = {f"mllms.{value}" for _, value, marks in params.fields(p) if params.ENTRY in marks}
        listed = {key for key in stage.params if key.startswith("mllms.")}
        needed = {paths.CHECKED / key for key in checkpoints.digests(p)}
        wrong += [f"{name}: {key}" for key in listed ^ entries]
        wrong += [f"{name} lacks {path}" for path in needed | {paths.IN_ORDER} if not stage.needs(path)]
        wrong += [f"{name} does not use {path}" for path in checked - needed if stage.needs(path)]
    assert wrong == []


def test_a_key_reruns_exactly_its_stages(stages: dict[str, Stage]) -> None:
    assert {key: rerun_by(key, stages) for key in RERUNS} == RERUNS


def test_the_mllm_of_stage_1_retrains_nothing_and_redraws_no_arm_without_it(stages: dict[str, Stage]) -> None:
    """Table 1 of the paper changes this key only: its rows share everything else through the run cache."""
    assert not rerun_by("stage1.mllm", stages) & {"data", "reference", "finetune", "generate@raw", "generate@finetuned"}


def test_raw_depends_on_no_mllm_and_no_adapter(stages: dict[str, Stage]) -> None:
    raw = stages["generate@raw"]
    assert not any(key.startswith(("mllms", "stage1", "finetune")) for key in raw.params)
    assert not any("mllm" in dep or "lora" in dep for dep in raw.deps)


def test_what_arms_py_says_of_an_arm_is_what_its_stage_depends_on(stages: dict[str, Stage]) -> None:
    for arm in arms.ARMS:
        (maker,) = (stage for stage in stages.values() if str(paths.arm(arm.name)) in stage.outs)
        others = {paths.arm(name) for name in (arm.begins_as, arm.as_many_as) if name}
        found = {paths.arm(name) for name in arms.NAMES if maker.needs(paths.arm(name))}
        drawn = (maker.needs(paths.ADAPTER), maker.needs(paths.FIRST_PROMPTS), module(maker) == "stages.generate")
        assert (drawn, found) == ((arm.adapter, arm.prompts == "enhanced", not arm.draws_several), others), arm.name


def test_pre_training_is_a_project_of_its_own() -> None:
    with Repo(str(REPOSITORY)) as experiment, Repo(str(REPOSITORY / "pretrain")) as pretraining:
        ours, theirs = ({stage.name for stage in repo.index.stages} for repo in (experiment, pretraining))
    assert not ours & theirs
    assert {"render", "unet", "model_card"} <= theirs


def test_every_output_is_made_by_one_stage(stages: dict[str, Stage]) -> None:
    outs = [out for stage in stages.values() for out in stage.outs]
    assert len(set(outs)) == len(outs)


def test_every_path_that_the_code_knows_is_in_the_dag(stages: dict[str, Stage]) -> None:
    outs = {out for stage in stages.values() for out in stage.outs}
    known = [paths.DATASET, paths.REFERENCE, paths.CALIBRATION, paths.PROMPTS, paths.ADAPTER, paths.REPORT]
    known += [paths.VALIDATOR, paths.NUMBERS, paths.HEADLINE, paths.CHECKED]
    known += [of(arm) for arm in arms.NAMES for of in (paths.arm, paths.evaluation)]
    assert {path.as_posix() for path in known} <= outs


def test_the_code_that_makes_a_run_another_run_is_what_stages_take_and_none_makes() -> None:
    found = pipeline.code()
    assert "dvc.yaml" in found and "src/t2i_feedback/foundation" in found and "models/postcards/oracle" in found
    assert not any(dep.startswith(("data/arms", "data/checked", "metrics", "models/lora")) for dep in found)
