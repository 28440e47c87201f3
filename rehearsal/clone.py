"""A clone of this working tree, with servers and stand-ins around it and a profile that names them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from rehearsal import chat, coco, standins

REPOSITORY = Path(__file__).parents[1]
PROFILE = "rehearsal"


@dataclass(frozen=True)
class Clone:
    folder: Path
    environment: dict[str, str]

    def make(self, *arguments: str) -> int:
        """`make ... PROFILE=rehearsal` with the virtual environment that runs this. The exit status."""
        command = ["make", "--no-print-directory", "--assume-old=.venv/.ready", *arguments, f"PROFILE={PROFILE}"]
        return subprocess.run(command, cwd=self.folder, env=self.environment).returncode

    def times_run(self, stage: str) -> int:
        """How often a stage was executed, and not taken from the run cache, by the logs of all experiments."""
        logs = (self.folder / ".cache/tables").glob("*.log")
        return sum(log.read_text(errors="replace").count(f"Running stage '{stage}'") for log in logs)


@contextmanager
def ready(work: Path) -> Iterator[Clone]:
    """The clone in `work`/clone, committed, while its servers run."""
    models = work / "models"
    shipped = REPOSITORY / "models/postcards"
    standins.stable_diffusion(shipped / "sd", models / standins.STABLE_DIFFUSION)
    for name in standins.LLAVA.values():
        standins.llava(shipped / "mllm", models / name, name)
    standins.inception(work / "torch")
    coco.write(work / "coco")
    with coco.serving(work / "coco") as mirror, chat.serving(shipped / "mllm") as server:
        clone = Clone(work / "clone", environment(work))
        copy_tree(clone.folder)
        profile = clone.folder / "profiles" / f"{PROFILE}.yaml"
        profile.write_text(yaml.safe_dump(completed(models, mirror, server.url), sort_keys=False))
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "rehearsal"]):
            identity = ["-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost"]
            subprocess.run(["git", *identity, *arguments], cwd=clone.folder, check=True)
        yield clone


def environment(work: Path) -> dict[str, str]:
    """Of the commands: nothing of this repository's own, no hub, the key of the stand-in for GPT-4."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "T2I_", "MAKE"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(work / "torch"),
        "OPENAI_API_KEY": chat.KEY,
        "GIT_AUTHOR_NAME": "rehearsal",
        "GIT_AUTHOR_EMAIL": "rehearsal@localhost",
        "GIT_COMMITTER_NAME": "rehearsal",
        "GIT_COMMITTER_EMAIL": "rehearsal@localhost",
    }


def copy_tree(target: Path) -> None:
    """Every file that git tracks or would track, as it stands; not dvc.lock, so that nothing counts as done."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = REPOSITORY / name
        if source.is_file() and name != "dvc.lock":
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


def completed(models: Path, mirror: str, chat_url: str) -> dict:
    """rehearsal/profile.yaml with what is known only now."""
    profile = yaml.safe_load((REPOSITORY / "rehearsal/profile.yaml").read_text(encoding="utf-8"))
    profile["data"]["mirror"] = mirror
    profile["model"]["name"] = str(models / standins.STABLE_DIFFUSION)
    local = {"templates": "postcards", "dtype": "float32", "batch_size": 8}
    served = {"templates": "postcards", "base_url": chat_url}
    profile["mllms"] = {entry: {"model": str(models / name)} | local for entry, name in standins.LLAVA.items()}
    return profile | {"mllms": profile["mllms"] | {"gpt4": served, "cogvlm": served | {"samples": 3}}}
