"""Bring MLflow up to date with what is on disk: `python -m t2i_feedback.tracking.publish`.

A stage that DVC restores from its cache does not execute and logs nothing; this replays metrics, the reward curve,
pictures, the report and the adapter into the run of the present code and parameters. Twice is the same as once.
"""

import json

from t2i_feedback import arms, params
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.rows import EpochRow, read_rows
from t2i_feedback.tracking import runs


def main() -> None:
    publish(params.load())


def publish(p: params.Params) -> bool:
    """True when MLflow has everything. When it cannot be reached: False, one warning line, nothing lost."""
    if not runs.wanted():
        return False
    try:
        run = runs.parent_run()
        run.tag(wording())
        run.replay({0: metrics()})
        run.replay(reward_curve())
        files = (paths.REPORT, paths.SUMMARY, paths.PLOTS)
        run.keep(path for path in files if path.exists())
        if paths.ADAPTER.exists():
            run.keep([paths.ADAPTER], "models")
        run.finish("FINISHED")
    except Exception as error:  # MLflow, SQLAlchemy, requests and the disk each raise their own
        runs.warn(error)
        return False
    print(f"published to MLflow at {runs.shown(runs.uri())}, run {run.run_id}")
    return True


def wording() -> dict[str, str]:
    """The version of the templates that the MLLMs were asked with, by the cards of the arms."""
    cards = (paths.evaluation(arm) / "card.json" for arm in arms.NAMES)
    found = [json.loads(path.read_text()).get("templates") for path in cards if path.exists()]
    return {"templates": found[0]} if found and found[0] else {}


def metrics() -> dict[str, float]:
    """Every number of the metrics folder by a flat name: `arms.raw.fid`, `summary.…`, `finetune.…`."""
    numbers: dict[str, float] = {}
    for path in sorted(paths.METRICS.rglob("*.json")):
        prefix = ".".join(path.relative_to(paths.METRICS).with_suffix("").parts)
        numbers |= dict(_numbers(json.loads(path.read_text()), prefix))
    return numbers


def _numbers(value: object, name: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _numbers(inner, f"{name}.{key}")]
    return [(name, float(value))] if isinstance(value, (int, float)) else []


def reward_curve() -> dict[int, dict[str, float]]:
    """epoch -> its numbers, named `finetune.curve.…`; empty before anything was fine-tuned."""
    path = paths.ADAPTER / "history.jsonl"
    rows = read_rows(path, EpochRow) if path.exists() else []
    return {row.epoch: {f"finetune.curve.{name}": value for name, value in row.numbers().items()} for row in rows}


if __name__ == "__main__":
    running.run(main)
