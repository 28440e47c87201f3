"""A program: fine-tune the tiny pipeline for four epochs, in one process or in several.

    python -m torch.distributed.run --nproc-per-node 2 tests/support/ddpo_in_processes.py SD FOLDER OBJECTIVE [die]

Every process leaves FOLDER/RANK.pt: the adapter, and of every optimiser step its own gradient and the combined one.
With `die` the first process is killed while it writes the checkpoint of the third epoch.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import tiny_diffusion
import torch

from t2i_feedback.finetuning import checkpoint
from t2i_feedback.finetuning.acquisition import Scorer
from t2i_feedback.finetuning.rollout import Rollout
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation import distributed
from t2i_feedback.image_models.loading import load_image_model


def main(sd: str, folder: Path, objective: str, die: bool) -> None:
    config = tiny_diffusion.finetune(epochs=4, objective=objective)
    made = load_image_model(tiny_diffusion.model(name=sd))
    parameters = made.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, 5)
    trainer = Trainer(
        made,
        parameters,
        ["a cat", "two dogs", "a red house"],
        Scorer(lambda images, prompts: [255.0 - float(np.asarray(image).mean()) for image in images]),
        lambda images: {"brightness": 0.0, "contrast": 0.0, "sharpness": 0.0},
        model=tiny_diffusion.model(name=sd),
        finetune=config,
        seed=5,
        folder=folder,
    )
    own, combined, drawn = [], [], []
    combine, roll_out = distributed.all_reduce, trainer.roll_out

    def combining(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad is False and tensor.shape == (sum(p.numel() for p in parameters),):
            own.append(tensor.clone())
        return combine(tensor)

    def rolling_out(epoch: int) -> Rollout:
        rollout = roll_out(epoch)
        drawn.append(rollout.indices)
        return rollout

    def before_step(optimiser: torch.optim.Optimizer, *_: object) -> None:
        combined.append(torch.cat([parameter.grad.flatten().clone() for parameter in parameters]))

    distributed.all_reduce, trainer.roll_out = combining, rolling_out
    trainer.optimiser.register_step_pre_hook(before_step)
    if die:
        kill_while_writing(checkpoint, 3)
    trainer.run()
    adapter = torch.cat([parameter.detach().flatten() for parameter in parameters])
    torch.save(
        {"adapter": adapter, "own": own, "combined": combined, "drawn": drawn}, folder / f"{distributed.rank()}.pt"
    )
    distributed.shut_down()


def kill_while_writing(module, number: int) -> None:
    save = module.torch.save
    written = []

    def saving(state: object, place: object) -> None:
        written.append(place)
        save(state, place)
        if len(written) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    module.torch.save = saving


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], "die" in sys.argv)
