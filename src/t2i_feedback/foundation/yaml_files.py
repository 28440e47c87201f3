"""YAML as DVC reads it: by YAML 1.2, to which 3e-05 is a number, off and no are words, and 020260 is 20260."""

from pathlib import Path
from typing import Any

from t2i_feedback.foundation.errors import UserError


def read(path: Path) -> Any:
    """The file's content. Raises UserError when it is not there or no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the repository's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} cannot be read") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Any:
    """What a text says. Raises UserError, by the name `source`, when it is no YAML or gives a key twice."""
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.constructor import DuplicateKeyError

    try:
        return YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise UserError(f"{source} has a key twice{where}: {' '.join(str(error.problem).split())}") from None
    except (YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
