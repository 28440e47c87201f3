"""A program, `make soak`: kills the experiment again and again, and feeds it what nobody writes on purpose.

    PYTHONPATH=src:tests/support:. python tests/integration/soak.py --minutes 15 --seed 1

Two clones run the quick profile. One is left alone; the other is killed with -9 at random points until every stage was
hit twice, and must end with the same bytes. Then replies of a server, captions files, images and params.yaml are
damaged at random: each must be taken, or refused in one clear line. What was tried and what was found is printed; the
status is 1 when anything was found. It is no part of the tests: it takes a quarter of an hour.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_server
import yaml
from bytes_of_run import MADE
from PIL import Image

from rehearsal.clone import copy_tree
from t2i_feedback import mllm, params
from t2i_feedback.datasets import choice, folder
from t2i_feedback.datasets.captioned import Caption, CaptionedImage, store
from t2i_feedback.foundation import pipeline
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles

HITS = 2  # of every stage
GROWN = (
    None,
    True,
    False,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    "😀",
)


class Findings:
    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.found: list[str] = []

    def attempt(self, what: str, run: Callable[[], object]) -> None:
        """One try: whatever is neither success nor a UserError of one line is a finding."""
        self.tried[what] += 1
        try:
            run()
        except UserError as error:
            if what != "params.yaml" and "\n" in str(error):  # which has a line for each problem
                self.found.append(f"{what}: several lines: {str(error)[:200]!r}")
        except Exception as error:  # that is what is looked for
            self.found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")


# ------------------------------------------------------------------------------------------------ kill -9


def clone(place: Path) -> Path:
    copy_tree(place)
    environment = outside()
    for command in (
        ["git", "init", "--quiet"],
        [sys.executable, "-m", "t2i_feedback.tools.profile", "quick", "--apply"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=soak", "-c", "user.email=soak@localhost", "commit", "--quiet", "--message", "soak"],
    ):
        subprocess.run(command, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    return place


def outside() -> dict[str, str]:
    """The environment of a user who has just cloned."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "T2I_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": "src"}


def made(place: Path) -> dict[str, str]:
    files = (path for pattern in MADE for path in place.glob(pattern))
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def killed(place: Path, rng: random.Random, until: float, findings: Findings) -> Counter[str]:
    """`dvc repro`, killed as it comes, then each stage alone that was hit too seldom. Stage -> how often it was hit."""
    hits: Counter[str] = Counter()
    kill_and_repeat(place, ["dvc", "repro", "--no-run-cache"], hits, rng, until, findings)
    for stage in (one.name for one in pipeline.stages()):
        alone = ["dvc", "repro", "--no-run-cache", "--force", "--single-item", stage]
        while hits[stage] < HITS and time.monotonic() < until and not findings.found:
            kill_and_repeat(place, alone, hits, rng, until, findings)
    return hits


def kill_and_repeat(
    place: Path, command: list[str], hits: Counter[str], rng: random.Random, until: float, findings: Findings
) -> None:
    """Until it has ended by itself."""
    log = place / "soak.log"
    while True:
        with log.open("w") as output:
            running = subprocess.Popen(
                command, cwd=place, env=outside(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            stage = watch(running, log, hits, rng, time.monotonic() < until)
        if not stage:
            break
        hits[stage] += 1
        findings.tried["kill -9"] += 1
        mended = subprocess.run([sys.executable, "-m", "t2i_feedback.tools.unlock"], cwd=place, env=outside())
        if mended.returncode:
            findings.found.append(f"after a kill in {stage}: DVC's record could not be mended")
    if running.returncode:
        kills = sum(hits.values())
        findings.found.append(f"after {kills} kills {' '.join(command)} failed: {log.read_text()[-300:]!r}")


def watch(running: subprocess.Popen, log: Path, hits: Counter[str], rng: random.Random, may_kill: bool) -> str:
    """Kill it a moment after a stage has begun that was hit too seldom: that stage. "" when it has ended by itself."""
    while running.poll() is None:
        begun = [
            line.split("'")[1] for line in log.read_text(errors="replace").splitlines() if "Running stage '" in line
        ]
        if may_kill and begun and hits[begun[-1]] < HITS:
            time.sleep(rng.uniform(0.0, 7.0))
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
                return stages_of(log)[-1]
        time.sleep(0.05)
    return ""


def stages_of(log: Path) -> list[str]:
    """That have begun, by what DVC printed."""
    lines = log.read_text(errors="replace").splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage '")]


# ------------------------------------------------------------------------------------------------ what nobody writes


def damaged_json(rng: random.Random, tree: Any) -> Any:
    """With one to three of its values replaced, or taken out."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
            places += [(node, key) for key in keys]
            waiting += [node[key] for key in keys]
        node, key = rng.choice(places)
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice(GROWN)
        if not tree:
            break
    return tree


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut, or with some bits flipped, or with a piece of something else inside."""
    kind = rng.randrange(3)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    start = rng.randrange(len(changed))
    changed[start : start + rng.randint(0, 20)] = rng.randbytes(rng.randint(0, 20))
    return bytes(changed)


def fuzz_replies(rng: random.Random, times: int, place: Path, findings: Findings) -> None:
    whole = chat_server.said("Yes", logprobs=[{"Yes": 0.7, "No": 0.3}, {".": 1.0}])
    image = Image.new("RGB", (8, 8))
    with chat_server.running() as server:
        for number in range(times):
            body = json.dumps(damaged_json(rng, whole))
            if rng.random() < 0.2:
                body = damaged_bytes(rng, body.encode()).decode(errors="replace")
            server.script = [(200, {}, body)] * 2
            entry = chat_server.entry(server, reading=rng.choice(("auto", "text")))

            def ask(number: int = number, entry: Any = entry) -> None:
                with mllm.connect("soak", entry, place / f"{number}.sqlite") as model:
                    for found in (
                        roles.validate(model, [image], ["a fish"]),
                        roles.score_preference(model, [image], "dark"),
                        roles.enhance(model, ["a fish"]),
                    ):
                        json.dumps(
                            [getattr(one, "value", getattr(one, "p_yes", None)) for one in found], allow_nan=False
                        )
                        "".join(one.raw for one in found).encode()

            findings.attempt("replies", ask)


def fuzz_captions(rng: random.Random, times: int, place: Path, findings: Findings) -> None:
    names = ["a.png", "b.png", "sub/c.png"]
    (place / "sub").mkdir()
    for name in names:
        Image.new("RGB", (8, 8), (rng.randrange(256), 0, 0)).save(place / name)
    lines = [json.dumps({"image": name, "caption": f"a picture of {name}, ä é"}) for name in names]
    kinds = {
        "captions.jsonl": "\n".join(lines),
        "captions.csv": "image,caption\n" + "".join(f'{n},"x, {n}"\n' for n in names),
    }
    for number in range(times):
        for name, text in kinds.items():
            for other in kinds:
                (place / other).unlink(missing_ok=True)
            (place / name).write_bytes(damaged_bytes(rng, text.encode()))
            out = place / f"out{number}-{name}"
            out.mkdir()

            def take(out: Path = out) -> None:
                images = folder.read(place)
                choice.Choice("shortest", 1, out, choice.all_there, rng.random() < 0.5).draw(images, 2, "data.x")

            findings.attempt("captions files", take)
            shutil.rmtree(out)


def fuzz_images(rng: random.Random, times: int, place: Path, findings: Findings) -> None:
    pattern = Image.effect_noise((40, 30), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, more in (("png", {}), ("jpg", {"exif": exif}), ("webp", {}), ("gif", {}), ("bmp", {}), ("tif", {})):
        pattern.save(place / f"whole.{kind}", **more)
        content = (place / f"whole.{kind}").read_bytes()
        for _ in range(times):
            (place / f"a.{kind}").write_bytes(damaged_bytes(rng, content))
            image = CaptionedImage(1, place, f"a.{kind}", (Caption(1, "x"),))
            findings.attempt(f"images ({kind})", lambda image=image: store(image, place))


def fuzz_parameters(rng: random.Random, times: int, findings: Findings) -> None:
    whole = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for _ in range(times):
        content = damaged_json(rng, whole)
        findings.attempt("params.yaml", lambda content=content: params.check(content, "params.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="no kill after this; what runs is let end")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--times", type=int, default=300, help="tries of each kind of damage")
    parser.add_argument("--no-kills", action="store_true", help="damage alone: a minute")
    arguments = parser.parse_args()
    rng, findings = random.Random(arguments.seed), Findings()
    print(f"soak: seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        work = Path(name)
        for kind in ("replies", "captions", "images"):
            (work / kind).mkdir()
        fuzz_parameters(rng, arguments.times, findings)
        fuzz_images(rng, arguments.times, work / "images", findings)
        fuzz_captions(rng, arguments.times, work / "captions", findings)
        fuzz_replies(rng, arguments.times, work / "replies", findings)
        if not arguments.no_kills:
            until = time.monotonic() + 60 * arguments.minutes
            alone, disturbed = clone(work / "alone"), clone(work / "disturbed")
            subprocess.run(["dvc", "repro", "--quiet"], cwd=alone, env=outside(), check=True)
            hits = killed(disturbed, rng, until, findings)
            stages = [stage.name for stage in pipeline.stages()]
            print("hits: " + ", ".join(f"{stage} {hits[stage]}" for stage in stages), flush=True)
            seldom = [stage for stage in stages if hits[stage] < HITS]
            print(
                f"hit fewer than {HITS} times, for want of time: {', '.join(seldom)}"
                if seldom
                else "every stage was hit"
            )
            expected, found = made(alone), made(disturbed)
            other = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
            findings.tried["files compared"] = len(expected)
            findings.found += [f"after the kills {path} is another" for path in other]
    print("\n".join(f"tried {count:6d} {what}" for what, count in findings.tried.items()))
    print(
        "\n".join(f"{count} x {text}" for text, count in Counter(findings.found).most_common()) or "nothing was found"
    )
    sys.exit(1 if findings.found else 0)


if __name__ == "__main__":
    main()
