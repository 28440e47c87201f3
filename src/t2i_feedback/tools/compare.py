"""What differs from the run before: its parameters and headline numbers beside those of the run that is here.

python -m t2i_feedback.tools.compare        the run before is the last commit's
python -m t2i_feedback.tools.compare REV    or that of another commit, branch or experiment

Prints the differences and writes metrics/compared.html: the report with one more section. The report stage cannot
write that section itself, because DVC may bring its page back from the cache, where another run was the one before.
"""

import subprocess
import sys
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_text
from t2i_feedback.foundation.params import load
from t2i_feedback.reporting import before, page
from t2i_feedback.reporting.section import Settings
from t2i_feedback.reporting.tables import Table
from t2i_feedback.stages import report
from t2i_feedback.tools.arguments import Arguments
from t2i_feedback.tools.publish import check_up_to_date

COMPARED = paths.METRICS / "compared.html"  # no output of the DAG


def main(*arguments: str) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("rev", nargs="?", default="HEAD", help="a commit, branch or experiment (the last commit)")
    rev = parser.parse_args(arguments).rev
    check_up_to_date("compared")
    COMPARED.unlink(missing_ok=True)  # of another comparison
    differing = differences(rev)
    if differing is None:
        print(f"there is no run before this one to compare with: {rev} has no {paths.HEADLINE}")
        return
    found = before.compared(named(rev), *differing)
    if not (found.parameters or found.numbers):
        print(f"nothing differs from the run of {found.name} in the digits that the report writes")
        return
    print(f"what differs from the run of {found.name}:")
    for table in (found.parameters, found.numbers):
        if table:
            print(as_text(table))
    write_text(COMPARED, page.render(report.gather(load(Settings)), found))
    print(f"the report with these differences: {COMPARED}")


def differences(rev: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """DVC's differences of the parameters that stages read and of the headline's numbers; None when `rev` has no run.

    Either is key -> `old` and `new`, None where missing. UserError when DVC does not know `rev`.
    """
    try:
        with Repo() as repo:
            if repo.scm.no_commits:
                return None
            found = [repo.params.diff(a_rev=rev, deps_only=True), repo.metrics.diff(a_rev=rev)]
    except DvcException as error:
        raise UserError(f"nothing is compared: {error}") from None
    files = (paths.PARAMS, paths.HEADLINE)
    parameters, numbers = (one.get("diff", {}).get(str(path), {}) for one, path in zip(found, files, strict=True))
    if numbers and all(change["old"] is None for change in numbers.values()):
        return None
    return parameters, numbers


def named(rev: str) -> str:
    """The commit's short digest and subject; an experiment that git does not know stays as it is called."""
    done = subprocess.run(["git", "log", "-1", "--format=%h (%s)", rev, "--"], capture_output=True, text=True)
    return done.stdout.strip() or rev


def as_text(table: Table) -> str:
    """The first column to the left, the others to the right."""
    lines = [table.columns, *(row.cells for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    layout = "  ".join(f"{{:{'>' if i else '<'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*line) for line in lines)


if __name__ == "__main__":
    running.run(main, *sys.argv[1:])
