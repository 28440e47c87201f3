"""Models that learn together: their optimisers, their moving averages, and the checkpoint that holds both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from mllm_muon import Muon
from recipe import load_checkpoint, save_checkpoint, set_rate
from torch import Generator, Tensor, nn


class Training:
    """`parts` learn together, each at its share of the learning rate (`shares`).

    Muon changes the matrices and convolutions; AdamW the embeddings, biases, norms and what `outermost` names, mostly
    first and last layers.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        shares: dict[str, float],
        rate: float,
        outermost: Callable[[str], bool],
        seed: int,
    ) -> None:
        self.model = nn.ModuleDict(parts).train()
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        inner, outer = [], []
        for part, share in shares.items():
            matrices, others = [], []
            for name, parameter in self.model[part].named_parameters():
                apart = "embedding" in name or outermost(name) or parameter.ndim == 1
                (others if apart else matrices).append(parameter)
            inner.append({"params": matrices, "scale": share})
            outer.append({"params": others, "scale": share})
        adamw = torch.optim.AdamW(outer, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.optimisers = [Muon(inner, rate), adamw]
        self.generator = Generator().manual_seed(seed)
        self.step = 0

    def learn(self, loss: Tensor, rate: float) -> None:
        """One step of the optimisers and of the moving averages."""
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            set_rate(optimiser, rate)
            optimiser.step()
        self.step += 1
        keep = min(0.998, (10 + self.step) / (30 + self.step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - keep)

    def save(self, path: Path) -> None:
        modules = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        save_checkpoint(path, modules | {"generator": self.generator.get_state(), "step": self.step})

    def resume(self, path: Path) -> None:
        if state := load_checkpoint(path):
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            self.average, self.step = state["average"], state["step"]

    def averaged(self, part: str) -> dict[str, Tensor]:
        """The moving averages of a part's parameters, by their names in it."""
        names = [name for name, _ in self.model.named_parameters()]
        start = f"{part}."
        return {
            name.removeprefix(start): tensor
            for name, tensor in zip(names, self.average, strict=True)
            if name.startswith(start)
        }


def save_pipeline(pipeline, folder: Path) -> None:
    """Write a pipeline, complete or not at all, without the folders of this machine that diffusers notes in it."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    for path in fresh.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
