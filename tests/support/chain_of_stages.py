"""A program: all stages that can use several processes, in the DAG's order, in the current directory.

    python tests/support/chain_of_stages.py FOLDER
    python -m torch.distributed.run --nproc-per-node 2 tests/support/chain_of_stages.py FOLDER

Beside the stages' results it leaves FOLDER/drawn, FOLDER/asked and FOLDER/processes: a line for every image drawn,
every question that reached a model, and every process.
"""

import hashlib
import sys
from pathlib import Path

import torch.distributed

from t2i_feedback.foundation import distributed
from t2i_feedback.image_models.base import ImageModel
from t2i_feedback.mllm.local import LocalMllm
from t2i_feedback.stages import best_of_n, enhance, evaluate, finetune, generate, reference, validate


def note(file: str, line: str) -> None:
    with (Path(sys.argv[1]) / file).open("a") as lines:  # appending is atomic
        lines.write(f"{line}\n")


def main() -> None:
    draw, answers = ImageModel.draw, LocalMllm.answers

    def noting_draw(model, prompts, seeds):
        for prompt, seed in zip(prompts, seeds, strict=True):
            note("drawn", f"{stage} {seed} {prompt}")
        return draw(model, prompts, seeds)

    def answering(model, requests, decoding):
        for request in requests:
            image = hashlib.md5(request.image.tobytes()).hexdigest() if request.image else ""
            note("asked", f"{model._name} {request.text!r} {request.sample} {image} {decoding}")
        yield from answers(model, requests, decoding)

    ImageModel.draw, LocalMllm.answers = noting_draw, answering
    for name, run in {
        "reference": reference.main,
        "raw": lambda: generate.main("raw"),
        "enhance": enhance.main,
        "enhanced": lambda: generate.main("enhanced"),
        "validated": lambda: validate.main("validated"),
        "best_of_n": best_of_n.main,
        "finetune": finetune.main,
        "evaluate": lambda: evaluate.main("validated"),
    }.items():
        stage = name
        run()
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    note("processes", f"{distributed.rank()} of {world}")
    distributed.shut_down()


if __name__ == "__main__":
    main()
