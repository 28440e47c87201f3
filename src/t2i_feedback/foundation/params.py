"""params.yaml as typed sections. Each package has its section's class beside its code; a stage loads what it reads.

    class Settings(Keys):                             # of one stage: the keys that its entry of dvc.yaml lists
        seed: Seed
        model: Model                                  # a whole section
        judge: EntryName = key("finetune.judge")      # or one key of a section

    p = load(Settings)

Stage `check` has typed the whole file (`t2i_feedback.params`) before any other stage begins.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasPath, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from t2i_feedback.foundation import paths, yaml_files
from t2i_feedback.foundation.errors import UserError

FREE = "no result depends on it"  # marks a field: when it has changed, unfinished work is still taken up
LATER = "added later"  # marks a field: with its default it decides nothing, so that older work and files stay valid
CHECKPOINT = "names a checkpoint"  # marks a field: a folder or file here, whose bytes count, or a hub id
ENTRY = "names an entry of the catalogue mllms"  # marks a field: the bytes of that entry's checkpoint count

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
EntryName = Annotated[str, ENTRY]


def _size(value: object) -> int | tuple[int, int]:
    both = [value, value] if isinstance(value, int) else value
    if not isinstance(both, list | tuple) or len(both) != 2 or not all(type(side) is int for side in both):
        raise ValueError("a number of pixels is needed, or [width, height]")
    width, height = both
    if min(width, height) < 8 or width % 8 or height % 8:
        raise ValueError("a side is a multiple of 8 pixels")
    return width if isinstance(value, int) else (width, height)


Size = Annotated[int | tuple[int, int], PlainValidator(_size)]  # of an image, pixels: both sides, or width and height


class Section(BaseModel):
    """A section of params.yaml: every key is known and none is missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Keys(BaseModel):
    """The keys that a stage reads; all others are none of its business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Typed = TypeVar("Typed", bound=BaseModel)


def key(dotted: str) -> Any:
    """A field of `Keys` that is one key of a section."""
    return Field(validation_alias=AliasPath(*dotted.split(".")))


def load(kind: type[Typed], path: Path = paths.PARAMS) -> Typed:
    """The parameters that `kind` names. Raises UserError that lists every problem with its key."""
    return check(kind, read(path), str(path))


def read(path: Path = paths.PARAMS) -> dict[str, Any]:
    """The file as it is. Raises UserError when it is not there or no YAML."""
    return yaml_files.read(path)


def check(kind: type[Typed], raw: object, source: str) -> Typed:
    """Type what a YAML file held. Raises UserError that lists every problem of `source` with its key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _problems(error, raw))
        raise UserError(f"{source} has problems:\n{lines}") from None


def _problems(error: ValidationError, raw: object) -> list[str]:
    lines = []
    for problem in error.errors():
        where = ".".join(_keys(problem["loc"], raw))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key; {_meant(where, raw)}"
        elif problem["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"
        lines += [f"{where}: {part}" if where else part for part in message.splitlines()]
    return lines


def _meant(where: str, raw: Any) -> str:
    """The key beside an unknown one that is written nearly alike, as a question."""
    *above, unknown = where.split(".")
    for part in above:
        raw = raw.get(part) if isinstance(raw, dict) else None
    beside = [str(one) for one in raw if one != unknown] if isinstance(raw, dict) else []
    near = get_close_matches(unknown, beside, 1)
    return f"is {'.'.join([*above, near[0]])} meant?" if near else "is it misspelt?"


def _keys(location: tuple[str | int, ...], raw: Any) -> Iterator[str]:
    """The keys of a place in the file. Where a key's value chooses the class of a section, the place names it too."""
    for part in location:
        if isinstance(raw, dict) and part not in raw and part in raw.values():
            continue  # no key, but the value of the one that chose
        yield str(part)
        raw = raw.get(part) if isinstance(raw, dict) else None


# ------------------------------------------------------------------------------------------------ keys and values


def fields(values: BaseModel) -> Iterator[tuple[str, Any, list[Any]]]:
    """(dotted key, value, marks) of every field, those of sections within as well; entries of a dict have no marks."""
    for name, field in type(values).model_fields.items():
        alias = field.validation_alias
        dotted = ".".join(map(str, alias.path)) if isinstance(alias, AliasPath) else name
        value = getattr(values, name)
        unsaid = LATER in field.metadata and value == field.default
        yield dotted, value, [*field.metadata, *([FREE] if unsaid else [])]
        inner = {dotted: value} if isinstance(value, BaseModel) else {}
        if isinstance(value, dict):
            inner = {f"{dotted}.{item}": one for item, one in value.items() if isinstance(one, BaseModel)}
        for prefix, section in inner.items():
            for below, found, marks in fields(section):
                yield f"{prefix}.{below}", found, marks


def decisive(values: BaseModel) -> dict[str, Any]:
    """Dotted key -> value as JSON has it, of every leaf that is not marked FREE, nor LATER and as if unsaid."""
    free = [dotted for dotted, _, marks in fields(values) if FREE in marks]
    return {
        dotted: TypeAdapter(Any).dump_python(value, mode="json")
        for dotted, value, _ in fields(values)
        if not isinstance(value, BaseModel)
        and not (isinstance(value, dict) and any(isinstance(one, BaseModel) for one in value.values()))
        and dotted not in free
    }


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is no mapping itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height."""
    return (size, size) if isinstance(size, int) else size


def at(tree: Any, dotted: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
