"""Who may know whom. Read from the source, so that an import inside a function counts too."""

import ast
import json
import subprocess
import sys

import imports
import pytest

# Room -> the other rooms that it may know; all know `foundation`. A new room that does not state its place here fails.
MAY_KNOW = {
    "": set(),
    "foundation": set(),
    "arms": set(),
    "datasets": set(),
    "image_models": set(),
    "mllm": set(),
    "evaluation": set(),
    "loop": set(),  # callables only
    "calibration": {"datasets", "mllm"},
    "rewards": {"mllm"},
    "finetuning": {"image_models"},  # rewards, embeddings and judges reach it as callables
    "reporting": {"arms", "calibration", "evaluation"},
    "tracking": {"arms"},
}
EVERYTHING = {"stages", "tools"}  # and nobody knows them
READ_STAGES = {"tools.compare", "tools.estimate", "tools.paper"}
WHOLE = {"params", "needs"}  # of all rooms
ALL_PARAMETERS = {"stages.check", "needs", "tools"}  # who may know all of params.yaml; a stage knows the keys it reads
DAG_FILES = {"foundation", "stages", "tools", "tracking"}  # who may know the paths of the DAG's files


def room(name: str) -> str:
    """The package that a module lies in, or itself."""
    return name.partition(".")[0]


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_a_module_knows_only_the_rooms_that_it_may() -> None:
    wrong = []
    for name in (n for n in imports.modules() if room(n) not in EVERYTHING | WHOLE):
        may = MAY_KNOW[room(name)] | {room(name), "foundation", ""}
        wrong += [f"{name} knows {other}" for other in imports.knows(name) if room(other) not in may]
    assert wrong == []


def test_params_knows_sections_and_the_names_that_they_choose_among() -> None:
    others = [name for name in imports.knows("params") if room(name) not in ("foundation", "")]
    allowed = ("evaluation.protocols", "mllm.backends.local", "rewards.registry")
    assert [name for name in others if not name.endswith(".section") and name not in allowed] == []


def test_nobody_imports_a_program() -> None:
    wrong = []
    for name in imports.modules():
        known = {other for other in imports.knows(name) if within(other, EVERYTHING) and other not in EVERYTHING}
        own = room(name) if within(name, {"tools"}) else name
        allowed = {"stages"} if within(name, READ_STAGES) else set()
        wrong += [f"{name} knows {one}" for one in known if room(one) != own and room(one) not in allowed]
    assert wrong == []


def test_only_check_and_tools_know_all_parameters() -> None:
    assert [n for n in imports.modules() if "params" in imports.knows(n) and not within(n, ALL_PARAMETERS)] == []


def test_only_stages_tools_and_tracking_know_the_paths_of_the_dag() -> None:
    knowing = [name for name in imports.modules() if "foundation.paths" in imports.knows(name)]
    assert [name for name in knowing if not within(name, DAG_FILES)] == []


def test_the_rules_name_no_room_that_is_gone() -> None:
    assert set(MAY_KNOW) | EVERYTHING == {room(name) for name in imports.modules()} - WHOLE
    assert all(any(within(name, {place}) for name in imports.modules()) for place in READ_STAGES | ALL_PARAMETERS)


def test_only_tracking_imports_mlflow() -> None:
    importers = [
        name for name in imports.modules() if any(full.partition(".")[0] == "mlflow" for full in imports.imported(name))
    ]
    assert {room(name) for name in importers} == {"tracking"}


UNRESOLVED = """
import importlib.util, json, sys
imported, names = json.load(sys.stdin)
for full in imported:
    try:
        importlib.import_module(full)
    except ModuleNotFoundError:  # a class or a function
        importlib.import_module(full.rpartition(".")[0])
for name in names:
    module, *parts = name.split(".")
    while parts and hasattr(sys.modules[module], parts[0]):
        module, *parts = f"{module}.{parts[0]}", *parts[1:]
        if module not in sys.modules:
            break  # a class or a function
    else:
        if parts and importlib.util.find_spec(f"{module}.{parts[0]}"):
            print(name)
"""


def unresolved(imported: list[str], names: list[str]) -> list[str]:
    """Those of the names that lie in a submodule which a process does not have that imported no more than that."""
    asked = json.dumps([imported, names])
    done = subprocess.run([sys.executable, "-c", UNRESOLVED], input=asked, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow  # imports every library, each in a process of its own
def test_a_module_imports_itself_what_it_reaches_in_a_library() -> None:
    """`import scipy` is not enough for `scipy.stats`. Tests do not notice: their processes have imported everything."""
    reached = {name: imports.reached(name) for name in imports.modules()}
    wrong = []
    for library in sorted({library for found in reached.values() for library in found}):
        names = sorted(set().union(*(found.get(library, ()) for found in reached.values())))
        if suspect := set(unresolved([library], names)):
            for name, found in reached.items():
                own = [full for full in imports.imported(name) if full.partition(".")[0] == library]
                mine = sorted(suspect & found.get(library, set()))
                wrong += [f"{name}: {reach}" for reach in (unresolved(own, mine) if mine else ())]
    assert wrong == []


def test_a_name_that_nobody_imported_is_unresolved() -> None:
    assert unresolved(["xml"], ["xml.dom.minidom.parse"]) == ["xml.dom.minidom.parse"]
    assert unresolved(["xml.dom.minidom"], ["xml.dom.minidom.parse"]) == []


def test_params_yaml_and_dvc_yaml_are_named_once() -> None:
    for file in ("params.yaml", "dvc.yaml"):
        assert [name for name in imports.modules() if file in _strings(name)] == ["foundation.paths"]


def test_nothing_unpickles() -> None:
    wrong = []
    for name in imports.modules():
        imported = {full.partition(".")[0] for full in imports.imported(name)}
        wrong += [f"{name} imports {one}" for one in imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}]
        calls = (ast.unparse(node) for node in ast.walk(imports.tree(name)) if isinstance(node, ast.Call))
        loads = (call for call in calls if call.startswith("torch.load("))
        wrong += [f"{name}: {call}" for call in loads if "weights_only=True" not in call]
    assert wrong == []


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {"utils", "util", "common", "helpers", "misc"} & {name.rpartition(".")[2] for name in imports.modules()}


def _strings(name: str) -> set[str]:
    return {
        node.value
        for node in ast.walk(imports.tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
