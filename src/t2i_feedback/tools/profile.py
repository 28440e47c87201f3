"""Named set-ups: `profiles/<name>.yaml` holds the keys of params.yaml that it changes.

python -m t2i_feedback.tools.profile paper            # print the `dvc exp run -S ...` line that runs it once
python -m t2i_feedback.tools.profile paper --apply    # write it into params.yaml, comments kept
python -m t2i_feedback.tools.profile paper coco30k    # one on top of the other
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from t2i_feedback import params
from t2i_feedback.foundation import paths, running, yaml_files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_text
from t2i_feedback.foundation.params import leaves, read
from t2i_feedback.params import Params
from t2i_feedback.tools.arguments import Arguments

FOLDER = Path("profiles")
Scalar = str | int | float | bool | list | None


def overrides(*names: str) -> dict[str, Scalar]:
    """The dotted keys of profiles and their values, a later profile's before an earlier one's.

    Raises UserError that lists the profiles if a name is none.
    """
    available = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    found: dict[str, Scalar] = {}
    for name in names:
        if name not in available:
            there = ", ".join(available) or "none"
            raise UserError(f"PROFILE (make profile: NAME): no profile is called {name!r}; there are {there}")
        content = yaml_files.read(available[name])
        if not isinstance(content, dict):
            raise UserError(f"{available[name]} holds no keys")
        found |= leaves(content)
    return found


def chosen(*names: str) -> Params:
    """The present parameters with the values of profiles in them. Raises UserError if the result is not valid."""
    return params.check(changed(overrides(*names)), called(names))


def called(names: Sequence[str]) -> str:
    """What messages call params.yaml with these profiles."""
    files = [f"{FOLDER / name}.yaml" for name in names]
    return f"{paths.PARAMS} with {', '.join(files)}" if files else str(paths.PARAMS)


def changed(changes: Mapping[str, Scalar]) -> dict[str, Any]:
    """What params.yaml holds, with these dotted keys changed; nothing is checked."""
    return _put(read(), changes)


def merge(*names: str) -> str:
    """The text of params.yaml with the values of profiles in it. Raises UserError if the result is not valid."""
    return merged(overrides(*names), called(names))


def merged(changes: Mapping[str, Scalar], source: str) -> str:
    """The text of params.yaml with these dotted keys changed, as `dvc exp run -S` writes it: with comments, in order.

    Raises UserError, by the name `source`, if the result is not valid.
    """
    from ruamel.yaml import YAML

    params.check(changed(changes), source)
    yaml = YAML()
    yaml.default_flow_style = False
    text = StringIO()
    yaml.dump(_put(yaml.load(paths.PARAMS), changes), text)
    return text.getvalue()


def _put(content: dict[str, Any], changes: Mapping[str, Scalar]) -> dict[str, Any]:
    """The content itself, with these dotted keys changed. Raises UserError where a section holds no keys."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise UserError(f"{paths.PARAMS}: {'.'.join(sections) or 'the file'} holds no keys, so {key} cannot be set")
        section[last] = value
    return content


def command(*names: str) -> str:
    """The shell line that runs profiles as one experiment and leaves params.yaml alone."""
    chosen(*names)
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(setting)}" for setting in settings(overrides(*names)))])


def settings(changes: Mapping[str, Scalar]) -> list[str]:
    """What `dvc exp run -S` takes for each dotted key; one that params.yaml does not spell out is added."""
    present = read()
    return [f"{'' if _has(present, key) else '+'}{key}={as_override(value)}" for key, value in changes.items()]


def _has(content: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


_NO_WORDS = ("true", "false", "null", "nan", "inf")  # but values of their own


def as_override(value: Scalar) -> str:
    """A value in the grammar of Hydra's overrides, which `-S` takes."""
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in _NO_WORDS:
        return value
    # backslashes count only before a quote, the closing one too, and before a reference
    return '"' + re.sub(r'(\\*)("|\$\{|\Z)', lambda found: 2 * found[1] + (found[2] and "\\" + found[2]), value) + '"'


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("name", nargs="*", help="files of profiles/, without .yaml, a later one on top of an earlier")
    parser.add_argument("--apply", action="store_true", help="write the values into params.yaml")
    given = parser.parse_args()
    names = given.name or [""]  # which is none: the error lists those there are
    if given.apply:
        write_text(paths.PARAMS, merge(*names))
        files = " and ".join(f"{FOLDER / name}.yaml" for name in names)
        print(f"params.yaml now has the {len(overrides(*names))} values of {files}")
    else:
        print(command(*names))


if __name__ == "__main__":
    running.run(main)
