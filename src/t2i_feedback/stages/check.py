"""check: is params.yaml in order, and which checkpoints does it name?

Runs always and takes a second. Every other stage depends on what it leaves: a file that never changes, so that nothing
begins before all of params.yaml was found to be in order, and the digest of each checkpoint that a key names, so that a
checkpoint that was trained again in its place makes exactly the stages out of date that use it.
"""

import sys

from t2i_feedback import needs, params
from t2i_feedback.datasets import sources
from t2i_feedback.foundation import checkpoints, paths, running
from t2i_feedback.foundation.files import write_text


def main() -> None:
    p = params.load()
    sources.foresee(p.data, paths.root())
    needs.of_hub(p)
    for warning in p.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    digests = checkpoints.digests(p)
    for name, content in checkpoints.noted(digests).items():
        write_text(paths.CHECKED / name, content)
    here = [key for key, digest in digests.items() if digest != checkpoints.ELSEWHERE]
    print(f"check: params.yaml is in order; checkpoints on this machine: {', '.join(here) or 'none'}")


if __name__ == "__main__":
    running.run(main)
