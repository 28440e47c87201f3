"""Wrong arguments of the tools: one line that has make's name of the variable."""

import importlib
import sys

import pytest

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.tools.arguments import Arguments, count, natural

WRONG = [
    ("improve", ["a red square", "--rounds", "zero"], "ROUNDS: 'zero' is not a whole number of at least 1"),
    ("improve", ["a red square", "--seed", "-1"], "SEED: '-1' is not a whole number of at least 0"),
    ("feedback", ["--preference", "dark", "--epochs", "0"], "EPOCHS: '0' is not a whole number of at least 1"),
    ("feedback", ["--port", "http"], "PORT: 'http' is not a whole number of at least 0"),
    ("estimate", ["--gpus", "2.5"], "GPUS: '2.5' is not"),
    ("gallery", ["--captions", "0"], "CAPTIONS: '0' is not"),
    ("paper", ["table1", "--jobs", "many"], "JOBS: 'many' is not"),
    ("paper", ["4"], "TABLE: invalid choice"),
    ("paper", ["table1", "--rows"], "ROWS: expected at least one argument"),
    ("sealed", ["--seeds", "0"], "SEEDS: '0' is not"),
    ("compare", ["HEAD", "HEAD~1"], "unrecognized arguments: HEAD~1"),
    ("calibrate_entry", ["a", "b"], "unrecognized arguments: b"),
    ("calibrate_entry", [], "JUDGE: '' is no entry of mllms; there are "),
    ("profile", [], "PROFILE (make profile: NAME): no profile is called ''; there are "),
    ("doctor", ["--fast"], "unrecognized arguments: --fast"),
]


@pytest.mark.parametrize(("tool", "given", "told"), WRONG)
def test_a_wrong_argument_is_one_line(tool: str, given: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"t2i_feedback.tools.{tool}"
    module = importlib.import_module(name)
    program = importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module
    monkeypatch.setattr(sys, "argv", [tool, *given])
    with pytest.raises(UserError) as error:
        program.main(*given) if tool in ("compare", "sealed", "calibrate_entry") else program.main()
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("007", 7), ("64", 64)])
def test_whole_numbers_are_read(text: str, value: int) -> None:
    assert (count(text), natural(text)) == (value, value)


@pytest.mark.parametrize("text", ["", " 1", "-1", "1.0", "1e3", "٣", "9" * 5000])
def test_anything_else_is_none(text: str) -> None:
    parser = Arguments("what it does")
    parser.add_argument("--gpus", type=natural)
    with pytest.raises(UserError, match=r"^GPUS: "):
        parser.parse_args([f"--gpus={text}"])
