"""dvc.lock, where DVC notes of every stage that ran its parameters and the MD5 of what it made."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i_feedback.foundation import paths, pipeline, yaml_files
from t2i_feedback.foundation.params import at

Entry = Mapping[str, Any]  # of one stage


def entries() -> list[Entry]:
    """Of the stages that have run here, less those that dvc.yaml has no more: DVC keeps what it once noted. Raises
    UserError when the file is broken."""
    known = {stage.name for stage in pipeline.stages()}
    noted = ((yaml_files.read(paths.LOCK) or {}).get("stages") or {}) if paths.LOCK.exists() else {}
    return [entry for name, entry in noted.items() if name in known]


def outs(entry: Entry) -> dict[Path, str]:
    """What the stage made -> its MD5, that of a folder ending with `.dir`."""
    return {Path(out["path"]): out.get("md5", "") for out in entry.get("outs", [])}


def with_upstream(some: Iterable[Entry], known: Iterable[Entry]) -> list[Entry]:
    """These entries, and those of all stages whose outputs they depend on, directly or through others."""
    reached = list(some)
    for entry in reached:  # which grows
        deps = [Path(dep["path"]) for dep in entry.get("deps", [])]
        reached += [
            other
            for other in known
            if other not in reached
            and any(dep.is_relative_to(out) or out.is_relative_to(dep) for dep in deps for out in outs(other))
        ]
    return reached


def made(entry: Entry, path: Path, content: bytes | None = None) -> bool:
    """Whether the stage wrote the file as it is, or with this content. Of a folder only that it wrote one."""
    noted = outs(entry).get(path, "")
    if content is None and path.is_file():
        content = path.read_bytes()
    return noted.endswith(".dir") if content is None else noted == _md5(content)


def made_folder(entry: Entry, folder: Path, contents: Mapping[str, str]) -> bool:
    """Whether the stage wrote the folder with just these files: name -> content. DVC's digest of a folder is the MD5 of
    the list of its files' names and MD5s, as JSON."""
    listed = [{"md5": _md5(contents[name].encode()), "relpath": name} for name in sorted(contents)]
    return outs(entry).get(folder) == f"{_md5(json.dumps(listed).encode())}.dir"


def changed(entry: Entry, present: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The stage's parameters that are others by now: dotted key -> then and now, None where there is no such key."""
    recorded = entry.get("params", {}).get(str(paths.PARAMS), {})
    return {
        key: values
        for section, then in recorded.items()
        for key, values in _changed(section, then, at(present, section))
    }


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _changed(key: str, then: Any, now: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for inner in then | now:
            yield from _changed(f"{key}.{inner}", then.get(inner), now.get(inner))
    elif then != now:
        yield key, (then, now)
