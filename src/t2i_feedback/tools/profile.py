"""Named set-ups: `profiles/<name>.yaml` holds the keys of params.yaml that it changes.

python -m t2i_feedback.tools.profile paper            # print the `dvc exp run -S ...` line that runs it once
python -m t2i_feedback.tools.profile paper --apply    # write it into params.yaml, comments kept
"""

import json
import re
import shlex
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from t2i_feedback import params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_text
from t2i_feedback.foundation.params import leaves, read
from t2i_feedback.params import Params
from t2i_feedback.tools.arguments import Arguments

FOLDER = Path("profiles")
Scalar = str | int | float | bool | list | None


def overrides(name: str) -> dict[str, Scalar]:
    """A profile's dotted keys and their values. Raises UserError that lists the profiles if it is none."""
    import yaml

    available = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if name not in available:
        raise UserError(f"no profile is called {name!r}; there are {', '.join(available) or 'none'}")
    try:
        content = yaml.safe_load(available[name].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{available[name]} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{available[name]} holds no keys")
    return dict(leaves(content))


def chosen(name: str) -> Params:
    """The present parameters with a profile's values in them. Raises UserError if the result is not valid."""
    return params.check(changed(overrides(name)), f"params.yaml with {FOLDER / name}.yaml")


def changed(changes: Mapping[str, Scalar]) -> dict[str, Any]:
    """What params.yaml holds, with these dotted keys changed; nothing is checked."""
    return _put(read(), changes)


def merge(name: str) -> str:
    """The text of params.yaml with the profile's values in it. Raises UserError if the result is not valid."""
    return merged(overrides(name), f"params.yaml with {FOLDER / name}.yaml")


def merged(changes: Mapping[str, Scalar], called: str) -> str:
    """The text of params.yaml with these dotted keys changed, as `dvc exp run -S` writes it: with comments, in order.

    Raises UserError, by the name `called`, if the result is not valid.
    """
    from ruamel.yaml import YAML

    params.check(changed(changes), called)
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


def command(name: str) -> str:
    """The shell line that runs the profile as one experiment and leaves params.yaml alone."""
    chosen(name)
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(setting)}" for setting in settings(overrides(name)))])


def settings(changes: Mapping[str, Scalar]) -> list[str]:
    """What `dvc exp run -S` takes for each dotted key; one that params.yaml does not spell out is added."""
    present = read()
    return [f"{'' if _has(present, key) else '+'}{key}={_value(value)}" for key, value in changes.items()]


def _has(content: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _value(value: Scalar) -> str:
    """A value in the grammar of Hydra's overrides, which `-S` takes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value not in ("true", "false", "null"):
        return value
    return json.dumps(value)


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("name", nargs="?", default="", help="a file of profiles/, without .yaml")
    parser.add_argument("--apply", action="store_true", help="write the values into params.yaml")
    arguments = parser.parse_args()
    if arguments.apply:
        write_text(paths.PARAMS, merge(arguments.name))
        print(f"params.yaml now has the {len(overrides(arguments.name))} values of {FOLDER / arguments.name}.yaml")
    else:
        print(command(arguments.name))


if __name__ == "__main__":
    running.run(main)
