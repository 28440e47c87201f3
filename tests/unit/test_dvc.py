"""dvc.yaml against the code: a stage depends on all that it uses, on nothing else, and each key reruns what it must."""

import ast
import re
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import imports
import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from t2i_feedback import arms, params
from t2i_feedback.foundation import paths
from t2i_feedback.reporting import calibration

REPOSITORY = Path(__file__).parents[2]
SOURCES = "src/t2i_feedback/"
HARMLESS = {"model.device"}  # where it runs, not what it makes

DRAWN = {"generate_raw", "generate_enhanced", "validate", "best_of_n", "generate_finetuned", "validate_combined"}
EVALUATED = {f"evaluate@{arm}" for arm in arms.NAMES}
LOOP = {"enhance", "generate_enhanced", "validate", "best_of_n", "validate_combined"}
LOOP_EVALUATED = {f"evaluate@{arm}" for arm in ("enhanced", "best_of_n", "validated", "combined")}
TRAINED = {"finetune", "generate_finetuned", "validate_combined", "evaluate@finetuned", "evaluate@combined", "report"}
EVERYTHING = (
    {"data", "reference", "calibrate", "calibrate_validator", "enhance", "finetune", "report"} | DRAWN | EVALUATED
)

# A key of params.yaml -> exactly the stages that a change of it makes out of date, directly or through their inputs.
RERUNS = {
    "seed": EVERYTHING,
    "data.reference_images": EVERYTHING,
    "model.steps": EVERYTHING - {"data", "calibrate", "calibrate_validator", "reference"},
    "model.size": EVERYTHING - {"data", "calibrate", "calibrate_validator"},
    "stage1.max_rounds": LOOP | LOOP_EVALUATED | {"report"},
    "stage1.questions": LOOP | EVALUATED | {"report", "calibrate_validator"},
    "stage1.threshold": LOOP | EVALUATED | {"report", "calibrate_validator"},
    "stage1.feedback": LOOP | LOOP_EVALUATED | {"report"},
    "calibrate.images": TRAINED | {"calibrate", "calibrate_validator"},
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


class Stage:
    """A stage as DVC reads it."""

    def __init__(self, stage):
        self.name: str = stage.name
        self.module: str = re.search(r"-m t2i_feedback\.(stages\.\w+)", stage.cmd)[1]
        self.outs: set[str] = {_relative(out) for out in stage.outs}
        self.deps: set[str] = {_relative(dep) for dep in stage.deps if not isinstance(dep, ParamsDependency)}
        listed = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        self.keys: set[str] = {key for dep in listed for key in dep.params}

    def __repr__(self) -> str:
        return self.name


def _relative(output) -> str:
    return Path(output.fs_path).relative_to(output.repo.root_dir).as_posix()


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    """dvc.yaml and params.yaml in a repository of their own, as DVC resolves them."""
    root = tmp_path_factory.mktemp("dag")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, root)
    Repo.init(str(root), no_scm=True).close()
    with Repo(str(root)) as repo:
        return {stage.name: Stage(stage) for stage in repo.index.stages}


def rerun_by(key: str, stages: dict[str, Stage]) -> set[str]:
    """The stages that list the key, a section above it or a key below it, and all that depends on their outputs."""
    stale = {name for name, stage in stages.items() if any(_overlap(key, listed, ".") for listed in stage.keys)}
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


@cache
def read_keys(module: str) -> frozenset[str]:
    """The keys that a module takes from a Params, by convention called `p` or `params`: `p.model.size`, `p.seed`."""
    attributes = [node for node in ast.walk(imports.tree(module)) if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in attributes}
    chains = (ast.unparse(node).split(".") for node in attributes if id(node) not in inner)
    return frozenset(
        _key(section, *rest[:1])
        for chain in chains
        for position, (word, section) in enumerate(pairwise(chain))
        if word in ("p", "params") and section in params.Params.model_fields
        for rest in [chain[position + 2 :]]
    )


def _key(section: str, name: str = "") -> str:
    """`section.name`; the section alone if the name is no key of it."""
    fields = getattr(params.Params.model_fields[section].annotation, "model_fields", {})
    return f"{section}.{name}" if name in fields else section


def used_keys(stage: Stage) -> set[str]:
    modules = set(imports.closure(stage.module)) - {"tracking"}  # it logs all parameters and makes nothing of them
    return {key for module in modules for key in read_keys(module)} - HARMLESS


NAMES = sorted(EVERYTHING)


def test_the_dag_has_the_stages_of_the_plan(stages: dict[str, Stage]) -> None:
    assert set(stages) == EVERYTHING


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_every_module_that_it_uses(name: str, stages: dict[str, Stage]) -> None:
    stage = stages[name]
    files = {imports.modules()[module] for module in imports.closure(stage.module)}
    used = {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert {path for path in used if not any(f"{path}/".startswith(f"{dep}/") for dep in stage.deps)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_no_module_that_it_does_not_use(name: str, stages: dict[str, Stage]) -> None:
    stage = stages[name]
    files = {imports.modules()[module] for module in imports.closure(stage.module)}
    used = {path.relative_to(REPOSITORY).as_posix() for path in files}
    listed = {dep for dep in stage.deps if dep.startswith(SOURCES)}
    assert {dep for dep in listed if not any(f"{path}/".startswith(f"{dep}/") for path in used)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_every_key_that_it_reads(name: str, stages: dict[str, Stage]) -> None:
    listed = {"mllms" if key.startswith("mllms.") else key for key in stages[name].keys}
    assert {
        key for key in used_keys(stages[name]) if not any(f"{key}.".startswith(f"{one}.") for one in listed)
    } == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_no_key_that_it_does_not_read(name: str, stages: dict[str, Stage]) -> None:
    used = used_keys(stages[name])
    assert {listed for listed in stages[name].keys if not any(_overlap(listed, key, ".") for key in used)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_depends_on_the_catalogue_entries_that_it_selects_and_no_others(
    name: str, stages: dict[str, Stage]
) -> None:
    p = params.load(REPOSITORY / "params.yaml")
    selected = {"stage1.mllm": p.stage1.mllm, "finetune.judge": p.finetune.judge, "evaluate.judge": p.evaluate.judge}
    selected["evaluate.vqa_mllm"] = p.evaluate.vqa_mllm
    entries = {key.removeprefix("mllms.") for key in stages[name].keys if key.startswith("mllms")}
    used = used_keys(stages[name]) if entries else set()
    assert entries <= {value for key, value in selected.items() if any(_overlap(key, one, ".") for one in used)}


def test_a_stage_that_asks_a_model_depends_on_every_model_that_ships(stages: dict[str, Stage]) -> None:
    """Whichever of them its key names, training it again reruns the stage."""
    entries = params.load(REPOSITORY / "params.yaml").mllms.values()
    shipped = {entry.model for entry in entries if entry.model.startswith("models/")}
    asking = [stage for stage in stages.values() if any(key.startswith("mllms.") for key in stage.keys)]
    assert (len(shipped), len(asking)) == (2, 13)
    assert {stage.name: missing for stage in asking if (missing := shipped - stage.deps)} == {}


@pytest.mark.parametrize("key", RERUNS)
def test_a_key_reruns_exactly_its_stages(key: str, stages: dict[str, Stage]) -> None:
    assert rerun_by(key, stages) == RERUNS[key]


def test_the_mllm_of_stage_1_retrains_nothing_and_redraws_no_arm_without_it(stages: dict[str, Stage]) -> None:
    """Table 1 of the paper changes this key only: its rows share everything else through the run cache."""
    assert not rerun_by("stage1.mllm", stages) & {"data", "reference", "finetune", "generate_raw", "generate_finetuned"}


def test_raw_depends_on_no_mllm_and_no_adapter(stages: dict[str, Stage]) -> None:
    raw = stages["generate_raw"]
    assert not any(key.startswith(("mllms", "stage1", "finetune")) for key in raw.keys)
    assert not any("mllm" in dep or "lora" in dep for dep in raw.deps)


def test_every_output_is_made_by_one_stage(stages: dict[str, Stage]) -> None:
    outs = [out for stage in stages.values() for out in stage.outs]
    assert len(set(outs)) == len(outs)


def test_every_path_that_the_code_knows_is_in_the_dag(stages: dict[str, Stage]) -> None:
    outs = {out for stage in stages.values() for out in stage.outs}
    known = [
        paths.DATASET,
        paths.REFERENCE,
        paths.CALIBRATION,
        paths.PROMPTS,
        paths.ADAPTER,
        paths.REPORT,
        paths.SUMMARY,
    ]
    known += [paths.CALIBRATION_METRICS, paths.VALIDATOR_METRICS, paths.FINETUNE_METRICS]
    known += [paths.JUDGE_PICTURES / f"{name}.png" for name in calibration.JUDGES]
    known += [paths.VALIDATOR_PICTURES / f"{name}.png" for name in calibration.VALIDATORS]
    known += [of(arm) for arm in arms.NAMES for of in (paths.arm, paths.evaluation, paths.arm_metrics)]
    assert {path.as_posix() for path in known} <= outs
