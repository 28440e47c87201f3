"""A folder in which a stage can be run by hand: with our code, dvc.yaml and parameters, and what `check` leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2i_feedback.foundation import checkpoints, files, params, paths
from t2i_feedback.params import Params

REPOSITORY = Path(__file__).parents[2]


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch, parameters: Mapping[str, Any] | None = None) -> None:
    """Make `folder` the current directory and such a place; `parameters` is all of params.yaml, by default ours."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    furnish(parameters)


def furnish(parameters: Mapping[str, Any] | None = None, models: bool = True) -> None:
    """Make the current directory such a place, with or without the shipped models."""
    for name in ("src", "models/postcards") if models else ("src",):
        Path(name).parent.mkdir(exist_ok=True)
        if not Path(name).exists():
            Path(name).symlink_to(REPOSITORY / name)
    paths.PIPELINE.write_bytes((REPOSITORY / paths.PIPELINE).read_bytes())
    write_parameters(parameters or ours())


def ours() -> dict[str, Any]:
    """All of this repository's params.yaml."""
    return params.read(REPOSITORY / paths.PARAMS)


def write_parameters(parameters: Mapping[str, Any]) -> None:
    """As params.yaml of the current directory, and what stage `check` makes of it."""
    files.write_text(paths.PARAMS, yaml.safe_dump(dict(parameters)))
    for name, content in checkpoints.noted(checkpoints.digests(params.load(Params))).items():
        files.write_text(paths.CHECKED / name, content)
