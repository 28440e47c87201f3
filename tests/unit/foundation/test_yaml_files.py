"""YAML is read as DVC reads it, and what is none is one line."""

from pathlib import Path

import pytest

from t2i_feedback.foundation import yaml_files
from t2i_feedback.foundation.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-05", 0.00003), ("1e-4", 0.0001), ("020260", 20260), ("off", "off"), ("no", "no"), ("true", True), ("", None)],
)
def test_a_value_is_what_dvc_takes_it_for(text: str, value: object) -> None:
    from dvc.utils.serialize import loads_yaml

    found = yaml_files.parse(f"key: {text}", "here")["key"]
    assert (found, type(found)) == (value, type(value))
    assert loads_yaml(f"key: {text}")["key"] == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: {c: 1, c: 2}", 'params.yaml has a key twice (line 2): found duplicate key "c"'),
        ("a: [1", "params.yaml is not YAML: "),
        ("a: 2024-02-30", "params.yaml is not YAML: day is out of range for month"),
        ("a:\n\t- 1", "params.yaml is not YAML: "),
    ],
)
def test_what_is_no_yaml_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        yaml_files.parse(text, "params.yaml")
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_names_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="is not UTF-8 text: byte 3"):
        yaml_files.read(file)
