"""doctor: what this machine can run, and what is the matter, each problem with its remedy.

python -m t2i_feedback.tools.doctor            # all of it, some seconds
python -m t2i_feedback.tools.doctor --quick    # before every run, less than a second: silent when all is well

Nothing is changed, no key is shown, and no address is asked that the parameters do not name. The status is 1 when a run
would fail. The quick part stops where nothing could run at all; what is missing only if something is to be computed it
tells, since a run may find everything done.
"""

import sys
from dataclasses import replace

from t2i_feedback import params
from t2i_feedback.foundation import running
from t2i_feedback.foundation.errors import UserError, first_line
from t2i_feedback.params import Params
from t2i_feedback.tools.arguments import Arguments
from t2i_feedback.tools.doctor import fits, machine, reach, repository
from t2i_feedback.tools.doctor.checks import CHECKS, Check, Finding, Findings

SECTIONS = {"repository": repository, "machine": machine, "keys and servers": reach, "what can run here": fits}


def findings(quick: bool) -> dict[str, Findings]:
    """Section -> what its checks find."""
    try:
        p = params.load()
    except UserError:
        p = None  # a check of its own says why
    chosen = [one for one in CHECKS if (one.quick or not quick) and (p is not None or not one.takes_parameters)]
    return {
        title: [f for one in chosen if one.look.__module__ == module.__name__ for f in said(one, p, quick)]
        for title, module in SECTIONS.items()
    }


def said(one: Check, p: Params | None, quick: bool) -> Findings:
    """What a check finds; one that fails itself stops nothing."""
    try:
        found = one.look(p) if one.takes_parameters else one.look()
    except UserError as error:
        found = [Finding(str(error), "problem")]
    except Exception as error:
        found = [Finding(f"{one.look.__name__} could not be looked at: {first_line(error)}", "warning")]
    if quick and one.quick == "tells":
        found = [replace(each, verdict="warning") if each.verdict == "problem" else each for each in found]
    return found


def main() -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="what takes no time; prints what is not in order alone")
    quick = parser.parse_args().quick
    found = findings(quick)
    verdicts = [one.verdict for some in found.values() for one in some]
    for title, some in found.items():
        if quick:
            lines = [f"doctor: {one}" for one in some if one.verdict != "ok"]
        else:
            lines = [title, *(f"  {one}" for one in some)]
        print("\n".join(lines), end="\n" if lines else "", file=sys.stderr if quick else sys.stdout)
    if not quick:
        print(f"problems: {verdicts.count('problem')}, warnings: {verdicts.count('warning')}")
    if "problem" in verdicts:
        sys.exit(1)


if __name__ == "__main__":
    running.run(main)
