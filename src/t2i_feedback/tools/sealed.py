"""What is claimed, on captions and seeds that nothing was chosen on: the whole experiment once for each sealed seed.

    python -m t2i_feedback.tools.sealed --seeds 5
    python -m t2i_feedback.tools.sealed --seeds 5 --collect     run nothing, pool what is there

Each seed is a DVC experiment `sealed-LIST-NUMBER`; one that is finished with the present parameters and code is not run
again. Every comparison that the report makes is then pooled over the seeds: their mean, its 95 % interval over captions
(seeds have different captions, so the half widths add in squares), and how far apart the seeds are. Writes
metrics/sealed.md and .json (or sealed-PROFILE).
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from t2i_feedback.foundation import checkpoints, paths, running, yaml_files
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json, write_text
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.params import check
from t2i_feedback.tools import profile
from t2i_feedback.tools.arguments import Arguments, count
from t2i_feedback.tools.paper import experiments

LIST = Path("data/sealed.yaml")
MOST = 20  # seeds of a list


@dataclass(frozen=True)
class Pooled:
    """One comparison over the seeds."""

    key: str
    values: tuple[float, ...]  # of each seed
    low: float  # 95 % interval of their mean, over captions
    high: float

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else math.nan


def seeds(number: int, count: int) -> list[int]:
    """The first seeds of a list. Raises UserError if it has not so many."""
    if not 1 <= count <= MOST:
        raise UserError(f"SEEDS is {count}; a list has 1 to {MOST}")
    return [noise_seed(0, "sealed", number, place) % 1_000_000 for place in range(count)]


def pooled(summaries: Sequence[Mapping[str, float]]) -> list[Pooled]:
    """Of the comparisons with an interval that every seed has; `summaries` are those of metrics/numbers.json."""
    found = []
    for key in sorted(set.intersection(*(set(one) for one in summaries))):
        if not all(f"{key}_low" in one and f"{key}_high" in one for one in summaries):
            continue
        values = tuple(one[key] for one in summaries)
        halves = [(one[f"{key}_high"] - one[f"{key}_low"]) / 2 for one in summaries]
        half = math.sqrt(sum(half**2 for half in halves)) / len(halves)
        found.append(Pooled(key, values, fmean(values) - half, fmean(values) + half))
    return found


def markdown(comparisons: Sequence[Pooled], number: int, used: Mapping[int, str], command: str) -> str:
    """`used`: seed -> the commit that its experiment started from."""
    commits = ", ".join(dict.fromkeys(commit[:12] for commit in used.values()))
    lines = [
        f"# Sealed list {number}: seeds {', '.join(map(str, used))}",
        "",
        f"`{command}`, {len(used)} seeds, begun at {commits}. Means over the seeds, 95 % intervals over captions, "
        "standard deviation over the seeds, and the lowest and highest seed.",
        "",
        "| | mean | 95 % over captions | sd over seeds | seeds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.key} | {one.mean:.3f} | {one.low:.3f} to {one.high:.3f} | {one.spread:.3f} | "
        f"{min(one.values):.3f} to {max(one.values):.3f} |"
        for one in comparisons
    ]
    return "\n".join([*lines, ""])


def main(*arguments: str) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--seeds", type=count, default=5, help="how many of the list (5)")
    parser.add_argument("--profile", nargs="*", default=[], help="files of profiles/, applied in this order")
    parser.add_argument("--collect", action="store_true", help="run nothing, pool what is there")
    given = parser.parse_args(arguments)
    number = int(yaml_files.read(LIST)["list"])
    head = experiments.commit()
    summaries: list[Mapping[str, float]] = []
    used: dict[int, str] = {}
    for place, seed in enumerate(seeds(number, given.seeds)):
        found = _experiment("-".join(["sealed", str(number), str(place + 1), *given.profile]), seed, given)
        if found is not None:
            summaries.append(experiments.Files(found).numbers(paths.NUMBERS)["summary"])
            used[seed] = found.base
    if not summaries:
        raise UserError("no sealed seed has been run with these parameters and this code: `make sealed` runs them")
    comparisons = pooled(summaries)
    command = f"make sealed SEEDS={given.seeds}" + (f' PROFILE="{" ".join(given.profile)}"' if given.profile else "")
    text = markdown(comparisons, number, used, command)
    target = paths.METRICS / "-".join(["sealed", *given.profile])
    write_text(target.with_suffix(".md"), text)
    plain = {one.key: {"mean": one.mean, "low": one.low, "high": one.high, "seeds": one.values} for one in comparisons}
    write_json(
        target.with_suffix(".json"), {"list": number, "profile": given.profile, "seeds": used, "comparisons": plain}
    )
    print(text)
    print(f"in {target}.md and .json. If something is changed because of this, count {LIST} up; seen: {head[:12]}")


def _experiment(name: str, seed: int, given: argparse.Namespace) -> experiments.Experiment | None:
    """One seed's, which is run if need be; None if it is not there and not to be run.

    Raises UserError where the run fails.
    """
    changes = profile.overrides(*given.profile) | {"seed": seed}
    content = profile.changed(changes)
    digests = checkpoints.digests(check(content, name))
    if experiments.find(name, content, digests) is None:
        if given.collect:
            return None
        log, start = paths.cache() / "sealed" / f"{name}.log", time.monotonic()
        print(f"{name}: started; its output is in {log}", flush=True)
        if why := experiments.run(name, profile.settings(changes), [], log):
            raise UserError(f"{name} failed: {why}")
        print(f"{name}: done ({(time.monotonic() - start) / 60:.1f} minutes)", flush=True)
    found = experiments.find(name, content, digests)
    if found is None:
        raise UserError(
            f"{name} ran, but its code or parameters are no longer those that are here; commit and try again"
        )
    return found


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
