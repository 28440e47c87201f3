"""A clone of this repository in a temporary folder, with the quick profile applied: the real thing, in seconds."""

import os
import subprocess
from pathlib import Path

import pretraining
import pytest
import warm

from rehearsal.clone import copy_tree


class Clone:
    def __init__(self, folder: Path):
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "T2I_"))}
        self.users = warm.real(kept | {"PYTHONPATH": "src"})
        self.environment = warm.environment(self.users | {"HF_HUB_OFFLINE": "1"})

    def run(self, *command: str, check: bool = True, environment: dict | None = None) -> subprocess.CompletedProcess:
        given = environment or self.environment
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=self.folder, env=given, **pipes)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
        return done

    def git(self, *arguments: str) -> None:
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments)


def clone_into(folder: Path) -> Clone:
    """Every file that git tracks or would track, committed anew."""
    copy_tree(folder)
    clone = Clone(folder)
    clone.git("init", "--quiet")
    clone.run("python", "-m", "t2i_feedback.tools.profile", "quick", "--apply")
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--message", "clone")
    return clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has run to its end as a user runs it: each stage had to import what it uses."""
    clone = clone_into(tmp_path_factory.mktemp("clone"))
    clone.output = clone.run("dvc", "repro", environment=clone.users).stdout
    return clone


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole pre-training has run, with tiny sizes."""
    import torch

    folder = tmp_path_factory.mktemp("pretrained")
    threads = torch.get_num_threads()
    pretraining.prepare(folder)
    for command in pretraining.CHAIN:
        pretraining.run(folder, command)
    torch.set_num_threads(threads)
    return folder
