"""Who may know whom. Read from the source, so that an import inside a function counts too."""

import ast

import imports
import pytest

FOUNDATIONS = {"errors", "params", "records"}

# Package or module -> the others that it may import. Whoever is not here fails: a new module states its place.
MAY_KNOW = {
    "": set(),
    "errors": set(),
    "processes": {"errors"},
    "paths": set(),
    "params": {"errors", "paths"},
    "records": {"errors"},
    "workspace": {"errors", "paths", "processes"},
    "datasets": FOUNDATIONS,
    "mllm": FOUNDATIONS,
    "pictures": set(),
    "diffusion": FOUNDATIONS | {"pictures", "processes"},
    "evaluation": FOUNDATIONS | {"processes"},
    "photometry": {"errors"},
    "traits": set(),
    "rewards": FOUNDATIONS | {"mllm", "photometry", "traits"},
    "sheet": {"errors", "pictures"},
    "ddpo": FOUNDATIONS | {"diffusion", "processes"},
    "loop": FOUNDATIONS,
    "reporting": FOUNDATIONS | {"evaluation"},
    "tables": FOUNDATIONS | {"paths", "reporting"},
    "tracking": {"errors", "params", "paths"},
}
# Programs beside the stages: they know the DAG's files and are started like stages.
PROGRAMS = {
    "estimate": FOUNDATIONS | {"mllm", "paths", "profile", "stages"},
    "profile": FOUNDATIONS | {"paths", "stages"},
    "publish": FOUNDATIONS | {"paths", "stages", "tracking"},
    "paper_tables": FOUNDATIONS | {"paths", "profile", "reporting", "stages", "tables", "tracking"},
}
KNOWS_PATHS = {"params", "workspace", "tracking", "mllm.ledger", "tables.experiments", *PROGRAMS}  # besides stages


def place(name: str) -> str:
    """The package that a module lies in, or itself."""
    return name.partition(".")[0]


@pytest.mark.parametrize("name", [name for name in imports.modules() if place(name) != "stages"])
def test_a_module_knows_only_whom_it_may(name: str) -> None:
    may = (MAY_KNOW | PROGRAMS)[place(name)] | {place(name)}
    if name == "mllm.ledger":
        may = may | {"paths"}  # for its own command line: where the ledger lies
    assert {place(other) for other in imports.knows(name)} - {""} <= may


def test_only_stages_and_programs_import_stages() -> None:
    others = [name for name in imports.modules() if place(name) != "stages" and name not in PROGRAMS]
    assert [name for name in others if any(place(other) == "stages" for other in imports.knows(name))] == []


def test_only_stages_and_what_runs_beside_them_know_the_paths() -> None:
    knowing = {name for name in imports.modules() if "paths" in imports.knows(name)}
    assert {name for name in knowing if place(name) != "stages"} <= KNOWS_PATHS


def test_the_rules_name_no_module_that_is_gone() -> None:
    present = {place(name) for name in imports.modules()}
    assert set(MAY_KNOW | PROGRAMS) <= present
    assert set(imports.modules()) >= KNOWS_PATHS


def test_only_tracking_imports_mlflow() -> None:
    importers = [
        name for name in imports.modules() if any(full.partition(".")[0] == "mlflow" for full in imports.imported(name))
    ]
    assert importers == ["tracking"]


def test_params_yaml_is_named_once_read_by_params_rewritten_by_profile_and_found_in_experiments() -> None:
    naming = [name for name in imports.modules() if "params.yaml" in _strings(name)]
    using = {name for name in imports.modules() if "PARAMS" in _attributes(name)}
    assert naming == ["paths"]
    assert using == {"params", "profile", "tables.experiments"}


@pytest.mark.parametrize("name", imports.modules())
def test_nothing_unpickles(name: str) -> None:
    assert not {"pickle", "dill", "cloudpickle", "joblib", "shelve"} & {
        full.partition(".")[0] for full in imports.imported(name)
    }
    for call in (node for node in ast.walk(imports.tree(name)) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(call)


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {"utils", "util", "common", "helpers", "misc"} & {name.rpartition(".")[2] for name in imports.modules()}


def _strings(name: str) -> set[str]:
    return {
        node.value
        for node in ast.walk(imports.tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _attributes(name: str) -> set[str]:
    """What a module takes from `paths`."""
    return {
        node.attr
        for node in ast.walk(imports.tree(name))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paths"
    }
