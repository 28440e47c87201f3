"""Improve prompts of your own: enhance, draw, validate, round again until the image is accepted.

    make improve PROMPT="a red house"        # PROMPTS=file: one per line; ADAPTER=models/lora ROUNDS=4 MLLM=gpt4 ...
    python -m t2i_feedback.tools.improve "a red house" --adapter models/lora

Image model, validator and threshold are those of params.yaml, or of a profile. Images, rounds and a page go into a
folder below improved/; no output of DVC is touched. The same prompt with the same parameters makes the same images, and
what is drawn and answered already is neither drawn nor asked again.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from t2i_feedback import params
from t2i_feedback.foundation import running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import ImageRow
from t2i_feedback.loop import rounds
from t2i_feedback.params import Params
from t2i_feedback.tools import profile
from t2i_feedback.tools.arguments import Arguments, count, natural
from t2i_feedback.tools.improve import page
from t2i_feedback.tools.improve.improving import Improver


def main() -> None:
    arguments = _arguments()
    texts = typed(arguments.prompt, arguments.prompts)
    p = _chosen(arguments)
    improver = Improver(p, texts, arguments.adapter)
    with_adapter = f" with {arguments.adapter}" if arguments.adapter else ""
    count = "1 prompt" if len(texts) == 1 else f"{len(texts)} prompts"
    print(f"improve: {count}, at most {p.stage1.max_rounds} rounds, drawn by {p.model.name}{with_adapter}, ", end="")
    print(f"enhanced and validated by {p.stage1.mllm}", flush=True)
    if improver.warning:
        print(f"warning: {improver.warning}", flush=True)
    shown: list[ImageRow] = []

    def on_round(judged: list[ImageRow]) -> None:
        shown.extend(judged)
        page.write(improver, shown)
        for row in judged:
            print(line(improver.caption(row), row), flush=True)

    images = improver.run(on_round)
    kept = [rounds.keep(rows) for rows in rounds.by_caption(images).values()]
    accepted = sum(bool(row.accepted) for row in kept)
    print(f"improve: {accepted} of {len(kept)} accepted; {page.write(improver, images)} shows every round")


def line(caption: str, row: ImageRow) -> str:
    """What came of one image, for a terminal."""
    missed = f": {row.feedback}" if row.feedback else ""
    lost = f" ({row.tokens_lost} tokens beyond the image model's window)" if row.tokens_lost else ""
    return f"  “{caption}” round {row.round}, {page.outcome(row)}{missed}\n    drew “{row.prompt}”{lost}"


def typed(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts that were asked for, each once. Raises UserError when there is none, or no such file."""
    if file is None:
        texts = [prompt or ""]
    elif prompt:
        raise UserError("PROMPT and PROMPTS: give one of them")
    else:
        try:
            texts = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"PROMPTS: {file} cannot be read as text: {error}") from None
    found = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if not found:
        raise UserError('no prompt: make improve PROMPT="a red house", or PROMPTS=file with one prompt per line')
    return found


def _chosen(arguments: argparse.Namespace) -> Params:
    """The present parameters, or a profile's, with what was asked for on the command line."""
    wanted = {
        "stage1.mllm": arguments.mllm or None,
        "stage1.max_rounds": arguments.rounds,
        "seed": arguments.seed,
    }
    changes = profile.overrides(*arguments.profile.split())
    changes |= {key: value for key, value in wanted.items() if value is not None}
    if not changes:
        return params.load()
    called = f"params.yaml with {', '.join(f'{key}={value}' for key, value in changes.items())}"
    return params.check(profile.changed(changes), called)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Arguments(__doc__)
    parser.add_argument("prompt", nargs="?", default=os.environ.get("PROMPT"), help="what the image is to show")
    parser.add_argument("--prompts", type=Path, help="a file with a prompt per line, instead")
    parser.add_argument("--adapter", type=Path, help="draw with this fine-tuned adapter: models/lora is the run's")
    parser.add_argument("--rounds", type=count, help="at most so many; else stage1.max_rounds")
    parser.add_argument("--mllm", help="who enhances and validates: a name of the catalogue; else stage1.mllm")
    parser.add_argument("--profile", default="", help="files of profiles/, without .yaml, with blanks between them")
    parser.add_argument("--seed", type=natural, help="of the noise; else seed of params.yaml")
    return parser.parse_args(given)


if __name__ == "__main__":
    running.run(main)
