"""The paper's tables by one command: named DVC experiments, their numbers collected, each also an MLflow run.

python -m t2i_feedback.tools.paper table1 --profile paper              # seven experiments, 13 rows
python -m t2i_feedback.tools.paper table1 --profile paper --rows gpt4  # these alone (and `raw`, which all share)
python -m t2i_feedback.tools.paper table2 --profile paper --collect    # run nothing, write metrics/table2.* again

An experiment that is finished is not run again, and one that failed does not stop the others: the same command again
runs what is missing. Stages that experiments share come from DVC's run cache.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_feedback import needs, params
from t2i_feedback.foundation import checkpoints, paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.params import Params
from t2i_feedback.reporting import paper
from t2i_feedback.tools import profile
from t2i_feedback.tools.arguments import Arguments, count
from t2i_feedback.tools.paper import experiments, write
from t2i_feedback.tools.paper.experiments import Files
from t2i_feedback.tools.paper.rows import FINETUNED, LAYOUTS, RAW, Layout
from t2i_feedback.tracking import store
from t2i_feedback.tracking.identity import identify
from t2i_feedback.tracking.runs import parent_run
from t2i_feedback.tracking.under_way import under_way


@dataclass(frozen=True)
class Plan:
    """An experiment to run or to find."""

    row: str  # RAW, FINETUNED or an entry of the catalogue
    name: str  # of the experiment, and of its MLflow run
    content: Mapping[str, Any]  # what params.yaml then holds
    params: Params
    settings: tuple[str, ...]  # the changes as `dvc exp run -S` takes them
    targets: tuple[str, ...]

    @property
    def log(self) -> Path:
        return paths.cache() / "tables" / f"{self.name}.log"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed; not there when it did not."""
        return self.log.with_suffix(".failed")


def plan(layout: Layout, row: str, profiles: Sequence[str]) -> Plan:
    """Raises UserError where the profiles do not fit together."""
    changes = profile.overrides(*profiles)
    if row in paper.ENTRIES:
        changes["stage1.mllm"] = row
    content = profile.changed(changes)
    targets = tuple(f"evaluate@{arm}" for arm in layout.arms(row))
    name = "-".join([*(profiles or ["params"]), row])
    return Plan(
        row, name, content, params.check(content, profile.called(profiles)), tuple(profile.settings(changes)), targets
    )


# ------------------------------------------------------------------------------------------------ before


def lacking(p: Params) -> str:
    """What this machine lacks for a run, as one line; "" when nothing is known to be missing."""
    halves = needs.in_16_bits(p)
    if halves and not _accelerator():
        return (
            f"no GPU is seen (torch.cuda.is_available() is False), and dtype is 16 bits for {', '.join(halves)}: check "
            "`nvidia-smi` and that torch was installed for CUDA, or run on a machine that has one"
        )
    for name, variable in needs.keys_not_set(p).items():
        return f"mllms.{name}: the environment variable {variable} is not set; put the server's key there"
    return "; ".join(filter(None, needs.unreachable(p)))


def _accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


# ------------------------------------------------------------------------------------------------ running


def run_missing(plans: Sequence[Plan], jobs: int) -> dict[str, str]:
    """Run what is not finished. Row -> why it failed. Raises UserError when what all rows share cannot be had."""
    experiments.commit()
    missing = [one for one in plans if experiments.find(one.name, one.content, checkpoints.digests(one.params)) is None]
    for one in plans:
        if one not in missing:
            print(f"{one.row}: done before", flush=True)
    if not missing:
        return {}
    if problem := lacking(plans[0].params):
        raise UserError(problem)
    # The first makes what all share. Without it, two at once would both begin that, and one would only wait.
    failed = _run_one(missing[0])
    if failed and missing[0].row == RAW:
        jobs = 1
    with ThreadPoolExecutor(jobs) as pool:
        try:
            reasons = [failed, *pool.map(_run_one, missing[1:])]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {one.row: why for one, why in zip(missing, reasons, strict=True) if why}


def _run_one(one: Plan) -> str:
    """ "" or why it failed."""
    start = time.monotonic()
    why = lacking(one.params)
    if not why:
        print(f"{one.row}: started; its output is in {one.log}", flush=True)
        why = experiments.run(one.name, one.settings, one.targets, one.log)
    if why:
        write_text(one.failure, f"{why}\n")
    else:
        one.failure.unlink(missing_ok=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{one.row}: {f'failed: {why}' if why else 'done'} ({minutes:.1f} minutes)", flush=True)
    return why


# ------------------------------------------------------------------------------------------------ collecting


def collect(layout: Layout, plans: Iterable[Plan]) -> tuple[list[write.Line], list[tuple[Plan, Files]]]:
    """The table's lines, and what the experiments made that they come from."""
    found: dict[tuple[str, str], write.Measured | str] = {}
    finished = []
    for one in plans:
        experiment = experiments.find(one.name, one.content, checkpoints.digests(one.params))
        files = experiments.Files(experiment) if experiment else None
        if files:
            finished.append((one, files))
        for arm in layout.arms(one.row):
            found[one.row, arm] = experiments.read(files, arm, one.content) if files else not_there(layout, one)
    return write.lines(layout, found), finished


def not_there(layout: Layout, one: Plan) -> str:
    if one.failure.exists():
        why = one.failure.read_text(encoding="utf-8").strip()
        return f"failed: {why} (`make table{layout.number}` with the same options tries it again)"
    return f"not run with these parameters and this code (`make table{layout.number}` runs it)"


def publish(one: Plan, files: Files) -> None:
    """One MLflow run an experiment, named like it; `finetune` has streamed into its child already."""
    if not store.wanted():
        return
    found = files.found
    try:
        identity = identify(one.content, checkpoints.digests(one.params), found.base, found.name)
        run = parent_run(one.content, identity)
        with under_way(run):
            run.tag({"t2i.row": one.row, "t2i.experiment": found.rev})
            run.replay({0: numbers(one, files)})
    except Exception as error:  # MLflow, SQLAlchemy, requests and the disk each raise their own
        store.warn(error)


def numbers(one: Plan, files: Files) -> dict[str, float]:
    """What this experiment measured, under the names that `publish` gives to the same numbers."""
    arms = [target.partition("@")[2] for target in one.targets]
    where = {f"arms.{arm}": paths.arm_numbers(arm) for arm in arms}
    if one.row == FINETUNED:
        where["finetune"] = paths.FINETUNE_NUMBERS
    return {
        f"{prefix}.{key}": float(value)
        for prefix, file in where.items()
        for key, value in files.numbers(file).items()
        if isinstance(value, (int, float))
    }


# ------------------------------------------------------------------------------------------------ the program


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("table", choices=sorted(LAYOUTS))
    parser.add_argument("--profile", nargs="*", default=[], help="files of profiles/, applied in this order")
    parser.add_argument("--rows", nargs="+", default=[], help="entries of the catalogue; all when none is named")
    parser.add_argument("--jobs", type=count, default=1, help="experiments at a time")
    parser.add_argument("--collect", action="store_true", help="run nothing, collect what is there")
    arguments = parser.parse_args()
    layout = LAYOUTS[arguments.table]()
    unknown = sorted(set(arguments.rows) - set(layout.experiments))
    if unknown:
        raise UserError(f"ROWS: {', '.join(unknown)}? Table {layout.number} has {', '.join(layout.experiments)}")
    plans = [plan(layout, row, arguments.profile) for row in layout.experiments]
    chosen = [one for one in plans if not arguments.rows or one.row in (RAW, *arguments.rows)]
    failed = {} if arguments.collect else run_missing(chosen, arguments.jobs)

    made, finished = collect(layout, plans)
    stamp = plans[0].params.report.stamp
    target = paths.METRICS / arguments.table
    write_text(target.with_suffix(".md"), write.markdown(layout, made, stamp, arguments.profile))
    write_text(target.with_suffix(".csv"), write.comma_separated(layout, made, stamp))
    write_json(target.with_suffix(".json"), write.plain(layout, made, stamp, arguments.profile))
    for one, files in finished:
        publish(one, files)
    there = sum(line.ours is not None for line in made)
    print(f"{write.title(layout, stamp)}: {there} of {len(made)} rows in {target}.md, .csv and .json")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the others are done, and the same command runs these again")


if __name__ == "__main__":
    running.run(main)
