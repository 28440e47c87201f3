"""Checks of the repository: git, DVC, its files and locks, the installed packages, models on disk, databases."""

import configparser
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tomllib
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from t2i_feedback import needs, params
from t2i_feedback.foundation import params as reading
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.params import Params, is_of_hub
from t2i_feedback.tools import unlock
from t2i_feedback.tools.doctor.checks import Findings, check, ok, problem, warning
from t2i_feedback.tracking import store

CONFLICT = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)
DVC = Path(".dvc")


@check(quick="stops")
def git() -> Findings:
    with suppress(configparser.Error):
        if _config_of_dvc().getboolean("core", "no_scm", fallback=False):
            return ok("DVC works without git here")
    if not shutil.which("git"):
        return problem("git is not installed, and DVC needs it", "install git")
    asked = subprocess.run(["git", "rev-parse", "--git-path", "index.lock"], capture_output=True, text=True)
    if "dubious ownership" in asked.stderr:
        return problem("git does not trust another user's folder", 'git config --global --add safe.directory "$PWD"')
    if asked.returncode:
        return problem("this folder is in no git repository", "git clone it, and work in the clone")
    if Path(lock := asked.stdout.strip()).exists():
        return warning(f"{lock} is there: git is at work, or was killed", f"when no git command runs: rm {lock}")
    return ok("git has this repository")


@check(quick="stops")
def dvc() -> Findings:
    if not shutil.which("dvc"):
        return problem("there is no command dvc", "make setup, then make, or source .venv/bin/activate")
    if not (DVC / "config").is_file():
        return problem("DVC's folder .dvc is not here", "git checkout .dvc")
    try:
        _config_of_dvc()
    except configparser.Error as error:
        return problem(f"DVC's configuration cannot be read: {error}", "correct it, or git checkout .dvc/config")
    return ok(f"DVC keeps results in {cache_of_dvc()}")


def cache_of_dvc() -> Path:
    """Where results are kept; where they usually are while the configuration cannot be read."""
    with suppress(configparser.Error):
        return DVC / _config_of_dvc().get("cache", "dir", fallback="cache")
    return DVC / "cache"


def _config_of_dvc() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read([DVC / "config", DVC / "config.local"])
    return config


@check(quick="stops")
def files() -> Findings:
    """The three files that a run is made of. Without dvc.lock everything is computed.

    Two of them people write: no remedy throws their work away.
    """
    found: Findings = []
    for path in (paths.PARAMS, paths.PIPELINE, *([paths.LOCK] if paths.LOCK.exists() else [])):
        theirs = path.exists() and path != paths.LOCK
        back = f"correct it; git diff {path} shows what was changed" if theirs else f"git checkout {path}"
        try:
            if path.exists() and (at := CONFLICT.search(text := path.read_bytes())):
                line = text.count(b"\n", 0, at.start()) + 1
                settle = f"settle it, or git checkout --ours {path}"
                found += problem(f"{path}:{line} has the conflict markers of a merge", settle)
            elif path == paths.PARAMS:
                params.load()
            elif not _has_stages(reading.read(path), path == paths.LOCK):
                found += problem(f"{path} is damaged: it has no stages, or half of one", back)
        except UserError as error:
            found += problem(str(error), back)
    return found or ok(f"{paths.PARAMS}, {paths.PIPELINE} and {paths.LOCK} are in order")


def _has_stages(content: object, lock: bool) -> bool:
    """Whole ones; a lock file may have none."""
    stages = content.get("stages", {} if lock else None) if isinstance(content, dict) else {} if lock else None
    each = stages.values() if isinstance(stages, dict) else [None]
    return all(isinstance(one, dict) and (not lock or "cmd" in one) for one in each)


@check(quick="stops")
def locks() -> Findings:
    """DVC's record of who reads and writes what. That a process has ended DVC sees by itself."""
    import psutil

    record, working = paths.root() / ".dvc/tmp/rwlock", unlock.dvc_processes(paths.root())
    damaged = record.exists() and not unlock.is_whole(record)
    if damaged and working:
        return problem(f"{record} is damaged, and DVC is at work (process {working[0]})", "wait until it has ended")
    if damaged:
        return warning(f"{record} was left half-written by a process that was killed", "make repro removes it")
    if working:
        return warning(f"DVC is at work here (process {working[0]})", "wait, or use dvc exp run --temp")
    named = re.findall(r'"pid": ?(\d+)', record.read_text(encoding="utf-8")) if record.exists() else []
    for pid in filter(psutil.pid_exists, map(int, named)):
        who = f"process {pid} ({psutil.Process(pid).name()})"
        return problem(f"{record} says that {who} is at work, which is no dvc", f"if that is so: rm {record}")
    return ok("no DVC process is at work, and none has left a lock")


@check(quick="stops")
def writable() -> Findings:
    found: Findings = []
    folders = (Path(), DVC, DVC / "tmp", cache_of_dvc(), paths.cache(), Path("data"), Path("models"), paths.METRICS)
    for folder in filter(Path.exists, folders):
        if not folder.is_dir():
            found += problem(f"{folder} is a file, and a folder is needed", f"mv {folder} {folder}.old")
        elif not os.access(folder, os.W_OK | os.X_OK):
            found += problem(f"{folder} cannot be written", f'sudo chown -R "$USER" {folder}, or mount it writable')
    return found or ok("results can be written")


@check()
def packages() -> Findings:
    """Python and what is installed, against what the project states."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    found, python = [], platform.python_version()
    supported = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    if python not in SpecifierSet(supported):
        found += problem(f"Python {python} is not supported ({supported})", "rm -r .venv; make setup PYTHON=python3.12")
    lines = (line.partition("#")[0].strip() for line in Path("requirements.txt").read_text("utf-8").splitlines())
    wanted = [one for one in map(Requirement, filter(None, lines)) if one.marker is None or one.marker.evaluate()]
    here = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    differs = []
    for one in wanted:
        version = here.get(canonicalize_name(one.name))
        if version is None:
            found += problem(f"the package {one.name} is not installed", "touch requirements.txt; make setup")
        elif version.partition("+")[0] not in one.specifier:  # behind a plus stands which build of torch it is
            differs.append(f"{one.name} {version}, not {one.specifier}")
    if differs:
        what = f"versions differ from requirements.txt, so numbers may: {'; '.join(differs[:5])}"
        found += warning(what, "touch requirements.txt; make setup")
    return found or ok(f"Python {python}, {len(wanted)} packages as in requirements.txt")


@check(quick="stops")
def models(p: Params) -> Findings:
    """Checkpoints on this machine: are they there, and whole?"""
    found: Findings = []
    named = {**needs.checkpoints(p), "the oracle": str(paths.ORACLE)}
    here = {key: Path(name) for key, name in named.items() if not is_of_hub(name)}
    for key, place in here.items():
        shipped = place.is_relative_to(paths.ORACLE.parent)
        remedy = f"git checkout {place}" if shipped else f"fetch or copy it again, or correct {key}"
        every = [place] if place.is_file() else sorted(place.rglob("*"))
        if not place.exists():
            found += problem(f"{key}: {place} is not here", remedy)
        elif place.is_dir() and not any(one.suffix == ".safetensors" for one in every):
            found += problem(f"{key}: {place} holds no *.safetensors", remedy)
        for one in every:
            if one.suffix in (".safetensors", ".json") and (why := broken(one)):
                found += problem(f"{key}: {one} {why}", remedy)
    return found or ok(f"models on disk are whole: {', '.join(map(str, here.values()))}")


def broken(path: Path) -> str:
    """What is the matter with a file of weights or a JSON file; "" = nothing that its head and size show."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return "is a pointer of git-lfs, not the file (git lfs pull)"
        file.seek(0)
        try:
            if path.suffix == ".json":
                json.load(file)
                return ""
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
            ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return "is damaged"
    whole = 8 + length + max(ends, default=0)
    return "" if size == whole else f"is cut off: {size:,} bytes of {whole:,}"


@check()
def databases() -> Findings:
    """The MLLMs' answers, and MLflow's runs, without which a run goes on."""
    found: Findings = []
    if why := _unusable(paths.ledger()):
        found += problem(f"the ledger {paths.ledger()}: {why}", "docs/how-it-works.md, When something is wrong")
    if (place := store.database()) and (why := _unusable(place)):
        found += warning(f"MLflow's {place}: {why}; runs go on without it", f"mv {place} {place}.old; make publish")
    return found or ok("the databases of answers and of MLflow are whole")


def _unusable(path: Path) -> str:
    """What is the matter with a database; "" = nothing, or it is not there."""
    if not path.exists():
        return ""
    try:
        with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if said == "ok" else said
