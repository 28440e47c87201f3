"""A GPU's first day: what only a GPU can show, in parts of minutes, with random weights and without a download.

    make gpu-check                     # all parts, 8 minutes at most; again: those that are left
    make gpu-check PARTS="sd15 nccl"   # some of them
    make gpu-check DEVICE=cpu          # tiny sizes on the CPU: the same code, figures that mean nothing
    make gpu-check WRITE=1             # and what was measured is written into estimates/throughputs.yaml

Every part is a process of its own (parts.py). What it finds stands in gpu-check/results.jsonl as it is found, and on
gpu-check/report.html, a page that can be sent in. Delete that folder to begin anew, as with another card.
"""

import argparse
import time

from t2i_feedback.foundation import running
from t2i_feedback.foundation.device import pick
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_text
from t2i_feedback.tools.estimate.figures import FIGURES
from t2i_feedback.tools.gpu_check import corrections, page, parts
from t2i_feedback.tools.gpu_check.results import attempts, read

LIMIT = 480.0  # seconds of a call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts.names())}; none: all")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--write", action="store_true", help=f"write what was measured into {FIGURES}")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in parts.names()]
    if unknown:
        raise UserError(f"PARTS: no part is called {', '.join(unknown)}; there are {', '.join(parts.names())}")
    if arguments.device not in ("auto", "cuda", "cpu"):
        raise UserError(f"DEVICE: {arguments.device} is none; there are auto, cuda, cpu")
    device = pick(arguments.device, "DEVICE")
    if device == "mps":
        device = "cpu"
    if device == "cpu":
        print("gpu-check: tiny sizes on the CPU: the code is what runs on a GPU, the figures mean nothing", flush=True)
    end, left = time.monotonic() + LIMIT, []
    for task in parts.tasks(arguments.parts or parts.names()):
        if (found := attempts(read(), device).get(task.name)) and found.done:
            print(f"{task.name}: done before")
            continue
        if end <= time.monotonic():
            left.append(task.name)
            continue
        print(f"{task.name} ...", flush=True)
        parts.run(task, device, end)
        print(f"{task.name}: {attempts(read(), device)[task.name].state}", flush=True)
        page.write(attempts(read(), device), device)
    found_all = attempts(read(), device)
    print(f"\n{page.text(found_all)}\n\nopen {page.write(found_all, device)}")
    if left:
        print(f"the call's {LIMIT / 60:g} minutes are over; the same command goes on with {', '.join(left)}")
    if device == "cpu":
        return
    lines = corrections.corrections(found_all)
    if lines and arguments.write:
        write_text(FIGURES, corrections.written(lines))
        print(f"written into {FIGURES}: {len(lines)} figures; `git diff` shows them")
    elif lines:
        print(f"to paste into {FIGURES} (WRITE=1 does it):\n{corrections.as_yaml(lines)}")


if __name__ == "__main__":
    running.run(main)
