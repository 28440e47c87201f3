"""Reads the package's imports from its source, without importing anything."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "t2i_feedback"


@cache
def modules() -> dict[str, Path]:
    """Name below the package (`image_models.lora`; a package is named like its folder) -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imported(name: str) -> frozenset[str]:
    """Full dotted names that a module imports anywhere in it, functions and type checking included."""
    names: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def reached(name: str) -> dict[str, set[str]]:
    """Library -> the dotted names that a module reaches from a plain `import` of it, as `torch.nn.functional.relu`."""
    bound, found = {}, {}
    for node in ast.walk(tree(name)):
        for alias in node.names if isinstance(node, ast.Import) else ():
            bound[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
    for node in ast.walk(tree(name)):
        chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        first, _, rest = chain.partition(".")
        if first in bound and chain.replace(".", "").isidentifier():
            found.setdefault(bound[first].partition(".")[0], set()).add(f"{bound[first]}.{rest}")
    return found


@cache
def knows(name: str) -> frozenset[str]:
    """The package's own modules that a module imports."""
    own = {full.removeprefix("t2i_feedback.") for full in imported(name) if full.startswith("t2i_feedback.")}
    return frozenset(_module(target) for target in own)


@cache
def is_code(name: str) -> bool:
    """Whether there is more in the module than its docstring."""
    return len(tree(name).body) > 1


def closure(name: str) -> set[str]:
    """The module itself and all that Python may load of the package because of it."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in reached:
            reached.add(current)
            waiting += [*knows(current), *_packages_above(current)]
    return reached


def _module(target: str) -> str:
    """`mllm.base.Mllm` -> `mllm.base`."""
    while target not in modules():
        target = target.rpartition(".")[0]
    return target


def _packages_above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]
