"""A program: README's results, written from metrics/numbers.json. The text is here, the numbers are there.

PYTHONPATH=src python tests/support/readme.py "5 to 7"  # minutes of `make repro`; checked by a test
"""

import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import wrap
from typing import Any

from t2i_feedback import arms

REPOSITORY = Path(__file__).parents[2]
README, NUMBERS = REPOSITORY / "README.md", REPOSITORY / "metrics/numbers.json"
SEALED = REPOSITORY / "metrics/sealed.json"
BLOCK = re.compile(r"<!-- results:begin -->\n.*?<!-- results:end -->\n", re.DOTALL)
MINUTES = re.compile(r"captions, ([\d to]+) minutes on 2 CPU cores")
ROWS = (  # label, key, digits; with a ± where the key has one
    ("alignment ↑", "alignment", 3),
    ("whole caption right ↑", "whole", 3),
    ("FID ↓ (EfficientNet-Lite0)", "fid", 1),
    ("IS ↑ (EfficientNet-Lite0)", "is", 2),
    ("brightness", "brightness", 1),
    ("contrast", "contrast", 1),
    ("sharpness", "sharpness", 3),
    ("judge ↑", "judge_score", 2),
    ("held-out judge ↑", "held_out_score", 2),
    ("diversity ↑", "diversity", 3),
    ("accepted", "acceptance_rate", 2),
    ("rounds", "rounds_mean", 2),
)


def committed(path: Path) -> str:
    """A file's text as it was committed; as it lies there where git knows it not, or not git."""
    show = ["git", "show", f"HEAD:{path.relative_to(REPOSITORY)}"]
    with suppress(OSError):
        found = subprocess.run(show, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8")
        if found.returncode == 0:
            return found.stdout
    return path.read_text(encoding="utf-8")


def figures() -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers and the sealed ones that README is held to: the committed ones, since a run of one's own, on another
    machine, rewrites what lies in metrics/; those that lie there once README's results are being rewritten."""
    block = [BLOCK.search(text) for text in (README.read_text(encoding="utf-8"), committed(README))]
    same = block[0] is not None and block[1] is not None and block[0][0] == block[1][0]
    texts = (committed(path) if same else path.read_text(encoding="utf-8") for path in (NUMBERS, SEALED))
    numbers, over_seeds = map(json.loads, texts)
    return numbers, over_seeds


def results(numbers: dict[str, Any], over_seeds: dict[str, Any], minutes: str) -> str:
    """README's lines between its two marks, and the marks."""
    return "\n".join(
        [
            "<!-- results:begin -->",
            f"The default run (`make repro`; 256 captions, {minutes} minutes on 2 CPU cores after the set-up,",
            "and up to twice that on slow ones; the numbers are in `metrics/numbers.json`):",
            "",
            *table(numbers["arms"]),
            "",
            "Paired over captions, with 95 % intervals:",
            "",
            *claims(numbers),
            *sealed(over_seeds),
            "<!-- results:end -->",
            "",
        ]
    )


def table(found: dict[str, dict[str, float]]) -> list[str]:
    lines = [_line(["", *(f"`{name}`" for name in arms.NAMES)]), "|---" * (len(arms.NAMES) + 1) + "|"]
    return lines + [
        _line([label, *(_cell(found[arm], key, digits) for arm in arms.NAMES)]) for label, key, digits in ROWS
    ]


def claims(numbers: dict[str, Any]) -> list[str]:
    n, validated = numbers["summary"], numbers["arms"]["validated"]

    def change(key: str, digits: int = 3) -> str:
        value, low, high = (f"{n[name]:+.{digits}f}" for name in (key, f"{key}_low", f"{key}_high"))
        return f"{value} [{low}, {high}]"

    said = [
        f"Feedback helps most: alignment of `validated` against `raw` {change('alignment_validated_minus_raw')}, and "
        "against the same budget without feedback (`best_of_n`) "
        f"{change('alignment_validated_minus_best_of_n')}. Second images with feedback beat those from the same noise "
        f"without it by {change('second_alignment_validated_minus_best_of_n')}. Part of this is by design: the shipped "
        "enhancer leaves open where things stand until feedback comes ([model card](models/postcards/README.md)).",
        f"Enhancing alone helps a little: facts right {change('alignment_enhanced_minus_raw')}, whole captions right "
        f"{change('whole_enhanced_minus_raw')}.",
        "Accepted images are better aligned than rejected ones by "
        f"{change('alignment_validated_accepted_minus_rejected')}; within four rounds "
        f"{validated['acceptance_rate']:.0%} of the captions get one.",
        "Fine-tuning moves images the preferred way: brightness "
        f"{change('brightness_finetuned_minus_raw', 1)}, contrast {change('contrast_finetuned_minus_raw', 1)}, "
        f"held-out judge {change('held_out_score_finetuned_minus_raw', 2)}; it keeps "
        f"{n['alignment_finetuned_over_raw']:.0%} of "
        f"`raw`’s alignment and {n['diversity_finetuned_over_raw']:.0%} of its diversity. Sharpness, which the "
        f"preference wants lower, moves by {change('sharpness_finetuned_minus_raw')}. Darker images are less like the "
        "reference: FID rises.",
        "Both stages together (`combined`) have both gains: held-out judge "
        f"{change('held_out_score_combined_minus_raw', 2)}, alignment {change('alignment_combined_minus_raw')}.",
    ]
    return [line for one in said for line in wrap(f"* {one}", 118, subsequent_indent="  ", break_on_hyphens=False)]


def sealed(found: dict[str, Any]) -> list[str]:
    """The same over the seeds of the sealed list."""

    def mean(key: str, digits: int = 3) -> str:
        one = found["comparisons"][key]
        return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(one["mean"], one["low"], one["high"], d=digits)

    kept = found["comparisons"]["alignment_finetuned_over_raw"]
    said = (
        f"On captions and {len(found['seeds'])} seeds that nothing was chosen on (`make sealed`, "
        f"[all of it](metrics/sealed.md)): alignment of `validated` {mean('alignment_validated_minus_raw')}, of "
        f"`enhanced` {mean('alignment_enhanced_minus_raw')}; fine-tuning moves the held-out judge by "
        f"{mean('held_out_score_finetuned_minus_raw', 2)} and keeps {kept['mean']:.1%} "
        f"[{kept['low']:.1%}, {kept['high']:.1%}] of alignment; `combined` moves the judge by "
        f"{mean('held_out_score_combined_minus_raw', 2)}."
    )
    return wrap(f"* {said}", 118, subsequent_indent="  ", break_on_hyphens=False)


def holds(numbers: dict[str, Any]) -> dict[str, bool]:
    """Each claim that is made in words -> whether the numbers bear it."""
    n, found = numbers["summary"], numbers["arms"]
    return {
        "feedback helps": n["alignment_validated_minus_raw_low"] > 0
        and n["alignment_validated_minus_best_of_n_low"] > 0,
        "second images are better": n["second_alignment_validated_minus_best_of_n_low"] > 0,
        "enhancing helps, and less than feedback": n["whole_enhanced_minus_raw_low"] > 0
        and 0 < n["alignment_enhanced_minus_raw_low"] < n["alignment_validated_minus_raw_low"],
        "accepted are better": n["alignment_validated_accepted_minus_rejected_low"] > 0,
        "darker and flatter": n["brightness_finetuned_minus_raw_high"] < 0
        and n["contrast_finetuned_minus_raw_high"] < 0,
        "liked more": n["held_out_score_finetuned_minus_raw_low"] > 0,
        "FID rises": found["finetuned"]["fid"] > found["raw"]["fid"],
        "combined has both gains": n["held_out_score_combined_minus_raw_low"] > 0
        and n["alignment_combined_minus_raw_low"] > 0,
    }


def _cell(arm: dict[str, float], key: str, digits: int) -> str:
    spread = arm.get(f"{key.removesuffix('_mean')}_std")
    return f"{arm[key]:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    numbers, over_seeds = (json.loads(path.read_text(encoding="utf-8")) for path in (NUMBERS, SEALED))
    text = README.read_text(encoding="utf-8")
    broken = [claim for claim, is_so in holds(numbers).items() if not is_so]
    if broken:
        sys.exit(f"the numbers do not bear what README says: {', '.join(broken)}")
    block = results(numbers, over_seeds, sys.argv[1])
    README.write_text(BLOCK.sub(lambda _: block, text), encoding="utf-8")


if __name__ == "__main__":
    main()
