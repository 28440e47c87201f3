"""dvc.yaml, the one place that says what a stage depends on: which files, which parameters, and what it makes.

Unfinished work, MLflow's runs and the paper's tables ask here, and so do `generate` and `validate`, to know what their
arm is drawn from; no other list of inputs is kept by hand.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from t2i_feedback.foundation import files, params, paths
from t2i_feedback.foundation.errors import UserError

STAGES = "t2i_feedback.stages"  # the package of the stages' programs
_REFERENCE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Stage:
    """An entry of dvc.yaml, its ${references} replaced by the values that they name."""

    name: str
    command: str
    deps: tuple[str, ...]  # files and folders
    params: tuple[str, ...]  # dotted keys
    outs: tuple[str, ...]  # metrics and plots as well
    begun_with: Mapping[str, str] = field(default_factory=dict, compare=False)  # its `sources` when it began to run

    def program(self) -> tuple[str, ...]:
        """What it starts: the stage's module and the first of its arguments."""
        words = self.command.partition(" -m ")[2].split()
        return tuple(words[:2])

    def needs(self, path: Path) -> bool:
        """Whether it depends on the path, or on a folder above it."""
        return any(path.is_relative_to(dep) for dep in self.deps)

    def sources(self) -> dict[str, str]:
        """The digest of each dep that somebody may edit while it runs: of our code, and of none that is not there."""
        named = (Path(dep) for dep in self.deps if Path(dep).parts[0] == "src")
        return {str(path): files.digest(path) for path in named if path.exists()}


def stages(pipeline: Path = paths.PIPELINE, parameters: Path = paths.PARAMS) -> list[Stage]:
    """All stages, those of `foreach` and `matrix` one by one. Raises UserError when there is no dvc.yaml here."""
    values = params.read(parameters)
    return [
        _stage(name, _filled(one, context))
        for group, entry in params.read(pipeline)["stages"].items()
        for name, one, context in _each(group, entry, values)
    ]


def running(module: str, *arguments: str) -> Stage:
    """The entry whose command starts this program of t2i_feedback.stages, which begins now. Raises UserError when there
    is none."""
    program = (f"{STAGES}.{module}", *arguments[:1])
    found = [stage for stage in stages() if stage.program() == program]
    if not found:
        known = [stage.program()[1] for stage in stages() if stage.program()[:1] == program[:1] and stage.program()[1:]]
        if known:
            given = arguments[0] if arguments else ""
            raise UserError(f"which arm? {module} knows {', '.join(known)} ({paths.PIPELINE}), not {given!r}")
        raise UserError(f"{paths.PIPELINE} has no stage that runs {' '.join(program)}")
    return replace(found[0], begun_with=found[0].sources())


def code() -> list[str]:
    """What makes a run another run, besides parameters and checkpoints: dvc.yaml, and all that stages take and none
    makes."""
    found = stages()
    made = [f"{out}/" for stage in found for out in stage.outs]
    taken = {dep for stage in found for dep in stage.deps}
    return [
        str(paths.PIPELINE),
        *sorted(
            dep for dep in taken if not any(f"{dep}/".startswith(out) or out.startswith(f"{dep}/") for out in made)
        ),
    ]


def _each(
    group: str, entry: Mapping[str, Any], context: Mapping[str, Any]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(stage's name, its entry, what its references may name) for each stage of a group, or for the stage itself."""
    if "foreach" in entry:
        items = _filled(entry["foreach"], context)
        pairs = items.items() if isinstance(items, dict) else ((item, item) for item in items)
        for key, item in pairs:
            yield f"{group}@{key}", entry["do"], {**context, "item": item, "key": key}
    elif "matrix" in entry:
        axes = _filled(entry["matrix"], context)
        for chosen in product(*axes.values()):
            item = dict(zip(axes, chosen, strict=True))
            yield f"{group}@{'-'.join(map(str, chosen))}", entry, {**context, "item": item}
    else:
        yield group, entry, dict(context)


def _stage(name: str, entry: Mapping[str, Any]) -> Stage:
    outs = [_name(out) for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    keys = [key for key in entry.get("params", []) if isinstance(key, str)]
    return Stage(name, entry["cmd"], tuple(map(_name, entry.get("deps", []))), tuple(keys), tuple(outs))


def _name(path: str | dict[str, Any]) -> str:
    """A dep or an out, which may have options."""
    return path if isinstance(path, str) else next(iter(path))


def _filled(value: Any, context: Mapping[str, Any]) -> Any:
    """With every ${reference} replaced by its value."""
    if isinstance(value, dict):
        return {_filled(key, context): _filled(one, context) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, context) for one in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return _value(context, whole[1])
    return _REFERENCE.sub(lambda reference: str(_value(context, reference[1])), value)


def _value(context: Mapping[str, Any], dotted: str) -> Any:
    found = params.at(context, dotted)
    if found is None:
        raise UserError(f"{paths.PARAMS} has no {dotted}, which {paths.PIPELINE} names")
    return found
