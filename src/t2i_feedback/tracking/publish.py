"""Bring MLflow up to date with what is on disk.

A stage that DVC restores from its cache does not execute and logs nothing; this replays metrics, the reward curve,
images, the report and the adapter into the run of the present code and parameters. Twice is the same as once.
What dvc.lock does not know as made with the present parameters is no record of them, and nothing is published then.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from t2i_feedback import arms
from t2i_feedback.foundation import lockfile, params, paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import EpochRow, read_rows
from t2i_feedback.tracking import arm_images, entities, store
from t2i_feedback.tracking.runs import Run, parent_run
from t2i_feedback.tracking.under_way import end_dead_runs, under_way

RECORDS = (paths.NUMBERS, paths.ADAPTER)


def publish(fresh: Collection[Path] = ()) -> bool:
    """True when MLflow has everything. When it cannot be reached: False, one warning line, nothing lost.

    Raises UserError when something on disk was not made with the present parameters. `fresh` is what the stage that
    runs just now has written: dvc.lock gets its entry when it ends.
    """
    if not store.wanted():
        return False
    check(fresh)
    try:
        end_dead_runs()
        run = parent_run()
        with under_way(run):
            _publish(run)
    except Exception as error:  # MLflow, SQLAlchemy, requests and the disk each raise their own
        store.warn(error)
        return False
    print(f"published to MLflow at {store.shown(store.uri())}, run {run.run_id}")
    return True


def _publish(run: Run) -> None:
    run.tag(wording())
    run.replay({0: metrics()})
    run.replay(reward_curve())
    files = (paths.REPORT, paths.NUMBERS, paths.HEADLINE, paths.PLOTS)
    run.keep(path for path in files if path.exists())
    entities.dataset(run, "evaluation")
    arm_images.log(run)
    if paths.ADAPTER.exists():
        run.keep([paths.ADAPTER], "models")
        entities.adapter(run, paths.ADAPTER)


def check(fresh: Collection[Path] = ()) -> None:
    """Raise UserError unless dvc.lock says of all numbers and the adapter that the present parameters made them."""
    there = [path for path in RECORDS if path.exists() and path not in fresh]
    entries = [entry for entry in lockfile.entries() if not lockfile.outs(entry).keys() & set(fresh)]
    makers = {path: entry for entry in entries for path in lockfile.outs(entry) if path in there}
    present = params.read()
    changed: dict[str, tuple[Any, Any]] = {}
    for entry in lockfile.with_upstream(makers.values(), entries) if paths.NUMBERS in makers else entries:
        changed |= lockfile.changed(entry, present)
    unknown = [path for path in there if path not in makers or not lockfile.made(makers[path], path)]
    if changed:
        key, (then, now) = next(iter(changed.items()))
        more = f" ({len(changed) - 1} more keys differ)" if len(changed) > 1 else ""
        problem = f"the metrics were made with {key}: {_shown(then)}, and {paths.PARAMS} has {_shown(now)}{more}"
    elif unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        problem = f"{unknown[0]}{more} is not as {paths.LOCK} has it"
    else:
        return
    raise UserError(f"nothing is published to MLflow: {problem}; run `dvc repro` first")


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)[:60]


def wording() -> dict[str, str]:
    """The version of the templates that the MLLMs were asked with, by the cards of the arms."""
    cards = (paths.evaluation(arm) / "card.json" for arm in arms.NAMES)
    found = [json.loads(path.read_text()).get("templates") for path in cards if path.exists()]
    return {"templates": found[0]} if found and found[0] else {}


def metrics() -> dict[str, float]:
    """Every number that was measured by a flat name: `arms.raw.fid`, `summary.…`, `finetune.…`."""
    found = json.loads(paths.NUMBERS.read_text(encoding="utf-8")) if paths.NUMBERS.exists() else {}
    return {name: value for part, numbers in found.items() for name, value in _numbers(numbers, part)}


def _numbers(value: object, name: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _numbers(inner, f"{name}.{key}")]
    return [(name, float(value))] if isinstance(value, (int, float)) else []


def reward_curve() -> dict[int, dict[str, float]]:
    """epoch -> its numbers, named `finetune.curve.…`; empty before anything was fine-tuned."""
    path = paths.ADAPTER / "history.jsonl"
    rows = read_rows(path, EpochRow) if path.exists() else []
    return {row.epoch: {f"finetune.curve.{name}": value for name, value in row.numbers().items()} for row in rows}
