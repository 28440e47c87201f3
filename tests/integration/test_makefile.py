"""What is given to make reaches the program as it was typed."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def make(folder: Path, *arguments: str) -> str:
    """What the programs that make starts were given: python on PATH says its arguments, PROMPT and PREFERENCE."""
    python = folder / ".venv/bin/python"
    if not python.exists():
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\nprintf "%s|" "$@" "$PROMPT" "$PREFERENCE"\n')
        python.chmod(0o755)
        (folder / "Makefile").write_bytes((REPOSITORY / "Makefile").read_bytes())
        (folder / "requirements.txt").touch()
        (folder / ".venv/.ready").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "text", ["a house for $5 each", '$(shell touch made) `touch made` "it\'s"', "50 % of $$ \\ #1"]
)
def test_a_text_arrives_as_it_was_typed(tmp_path: Path, text: str) -> None:
    assert f"|{text}||" in make(tmp_path, "improve", f"PROMPT={text}")
    assert f"--preference|{text}||{text}|" in make(tmp_path, "feedback", f"PREFERENCE={text}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("profile NAME=quick APPLY={}", "--apply"),
        ("table1 COLLECT={}", "--collect"),
        ("table2 COLLECT={}", "--collect"),
        ("sealed COLLECT={}", "--collect"),
        ("feedback PREFERENCE=dark PAIRS={}", "--pairs"),
        ("estimate PROFILE=paper JSON={}", "--json"),
        ("gpu-check WRITE={}", "--write"),
    ],
)
def test_a_switch_is_off_when_it_says_so(tmp_path: Path, words: str, option: str) -> None:
    for yes in ("1", "yes", "true"):
        assert f"|{option}|" in make(tmp_path, *words.format(yes).split())
    for no in ("0", "no", "false", "off", ""):
        assert option not in make(tmp_path, *words.format(no).split())


def test_the_ui_is_started_where_runs_are_kept_by_tracking(tmp_path: Path) -> None:
    assert make(tmp_path, "ui") == "-m|t2i_feedback.tools.ui|||"
