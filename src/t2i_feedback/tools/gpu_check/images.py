"""The image models: each at its real size, with random weights, through all that fine-tuning and drawing do.

What runs is the package's own loading, trainer and drawing. Only the files of a checkpoint are not there: within
`checkpoint`, diffusers' `from_pretrained` makes random weights on the device, by the published configurations
(tools/reckoning/networks.py). On the CPU the networks are tiny (tiny.py).
"""

import gc
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from transformers import CLIPTokenizer, T5Tokenizer

from t2i_feedback.finetuning import preflight
from t2i_feedback.finetuning.advantages import Advantages
from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.image_models.base import ENCODED, ImageModel
from t2i_feedback.image_models.loading import load_image_model
from t2i_feedback.tools.gpu_check.measuring import said, watched
from t2i_feedback.tools.gpu_check.results import Figures, Phases
from t2i_feedback.tools.gpu_check.tiny import SMALL, TINY, TOKENS
from t2i_feedback.tools.preflight import unrewarded
from t2i_feedback.tools.reckoning.memory import drawing, whole_run
from t2i_feedback.tools.reckoning.published import Setup

IMAGES = STEPS = 2
PROMPTS = [f"a red house by the sea number {number}" for number in range(ENCODED)]  # as many as are encoded at once
SIDE = 64  # pixels of a tiny model's images


@dataclass
class Bench:
    """A published model in a precision on a device: on the CPU in tiny."""

    name: str
    dtype: str
    device: str

    @classmethod
    def of(cls, task: str, device: str) -> "Bench":
        """A task is called by the model and the precision."""
        name, dtype = task.split()
        return cls(name, dtype, device)

    @cached_property
    def own(self) -> Setup:
        """As its profile has it."""
        return Setup.of(self.name)

    @cached_property
    def published(self) -> Setup:
        """Under its profile, in that precision."""
        setup = self.own.changed("model", dtype=self.dtype)
        if self.device != "cpu":
            return setup
        network, text = TINY[self.name]
        checkpoint = setup.checkpoint
        parts = {
            name: part.changed(network if name == setup.network else SMALL[name])
            for name, part in checkpoint.parts.items()
        }
        tiny = replace(setup, checkpoint=replace(checkpoint, parts=parts, text=text), known={})
        return tiny.changed("model", size=SIDE)

    @cached_property
    def setup(self) -> Setup:
        """With two images in two steps, both of which are trained on, and nothing that saves memory by itself."""
        plain = {"offload": False, "compile": False, "safety_checker": "off", "quantisation": "none"}
        setup = self.published.changed(
            "model", **plain, device=self.device, steps=STEPS, batch_size=IMAGES, variant="", vae_slicing=False
        )
        one = {"epochs": 1, "prompts_per_epoch": 1, "updates_per_epoch": 1, "steps": None, "timestep_share": 1.0}
        noise = setup.p.finetune.noise.model_copy(update={"window": None})
        return setup.changed(
            "finetune", **one, images_per_prompt=IMAGES, train_batch_size=IMAGES, min_sigma=0.0, noise=noise
        )

    def load(self, training: bool = False, **changes: Any) -> ImageModel:
        """By the package's own loading."""
        setup = self.setup.changed("model", **changes)
        with checkpoint(setup, self.device) as folder:
            return load_image_model(setup.changed("model", name=str(folder)).p.model, training=training)

    def reckoned(self) -> Phases:
        """Peaks in GB that fake tensors have, of what is measured below."""
        if self.reckons:
            yield "reckoned", {**whole_run(self.setup)}

    def fine_tuning(self) -> Phases:
        """Texts, rollout, decoding, replay, update."""
        p = self.setup.p
        with watched(self.device) as loading:
            model = self.load(training=True)
        weights = sum(self.setup.sizes.values()) / 1e9
        yield "load", loading | {"weights_gb": weights, "source": self.setup.checkpoint.source}
        config = p.finetune
        with tempfile.TemporaryDirectory() as nowhere:
            with watched(self.device) as texts:
                trainer = unrewarded(p, model, PROMPTS, nowhere)
            yield "texts", texts
        trainer.roll_out(0)  # the first takes what libraries do once
        with watched(self.device) as drawn:
            rollout = trainer.roll_out(0)
        assert isinstance(rollout.drawn, Trajectories) and isinstance(trainer.objective, PolicyGradient)
        latents = rollout.drawn.final(torch.arange(IMAGES)).to(model.device)
        with watched(self.device) as decoded:
            model.decode(latents)
        step = (float(drawn["seconds"]) - float(decoded["seconds"])) / (STEPS * IMAGES)
        steps = self.published.p.model.steps
        drawn["steps_per_second"] = 1 / step
        drawn["images_per_second"] = 1 / (steps * step + float(decoded["seconds"]) / IMAGES)
        yield "rollout", drawn
        yield "decoding", decoded
        with watched(self.device) as replayed:
            floors = preflight.check(trainer.objective, rollout.drawn, trainer.steps, config.train_batch_size, math.inf)
        for number, floor in floors.items():
            replayed[f"off_at_step_{number + 1}"] = floor
            replayed[f"sigma_of_step_{number + 1}"] = float(trainer.policy.schedule.sigma[number])
        yield "replay", replayed | {"least_clip_range": max(floors.values()) / preflight.SHARE}
        before = [parameter.detach().clone() for parameter in trainer.parameters]
        advantages = Advantages(torch.tensor([1.0, -1.0]), 0.0)
        learnt = trainer.update(0, rollout, advantages)
        moved = max(float((a.detach() - b).abs().max()) for a, b in zip(trainer.parameters, before, strict=True))
        with watched(self.device) as updated:
            trainer.update(0, rollout, advantages)
        forwards = float(updated["seconds"]) / (STEPS * IMAGES) / step
        yield "update", updated | learnt | {"moved": moved, "forwards_per_transition": forwards}

    def drawing(self) -> Phases:
        """Two images as the arms draw them: as they are, with what rests in main memory, and compiled."""
        free(self.device)
        first: list[np.ndarray] = []
        for phase, changes in {"drawing": {}, "offload": {"offload": True}, "compile": {"compile": True}}.items():
            figures, images = self.drawn(changes)
            first = first or images
            apart = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(images, first, strict=True))
            yield phase, figures | {"grey_levels_apart": apart}
            free(self.device)

    def drawn(self, changes: dict[str, Any]) -> tuple[Figures, list[np.ndarray]]:
        with said() as warnings, watched(self.device) as loading, _compiler(self.device):
            model = self.load(**changes)
        prompts, seeds = PROMPTS[:IMAGES], list(range(IMAGES))
        model.draw(prompts, seeds)
        with watched(self.device) as figures:
            images = [np.asarray(image) for image in model.draw(prompts, seeds)]
        figures["loading_seconds"] = loading["seconds"]
        if self.reckons:
            reckoned = drawing(self.setup.changed("model", offload="offload" in changes), IMAGES)
            figures["reckoned_gb"] = max(reckoned.values())
        if "compile" in changes:
            figures["compiled"] = self.device != "cpu" and hasattr(model.network.forward, "_torchdynamo_orig_callable")
        return figures | ({"said": "; ".join(warnings)} if warnings else {}), images

    def profile(self) -> Phases:
        """The reckoned peak of the profile as it is, where it has this precision: what `make estimate` goes by."""
        if self.is_profiles and self.device != "cpu":
            yield "profile", {"reckoned_gb": max(whole_run(self.published).values())}

    @property
    def reckons(self) -> bool:
        """On the CPU, where it is compared with nothing, in one of the precisions."""
        return self.is_profiles or self.device != "cpu"

    @property
    def is_profiles(self) -> bool:
        """Whether the profile has this precision."""
        return self.dtype == self.own.p.model.dtype


@contextmanager
def _compiler(device: str) -> Iterator[None]:
    """On the CPU nothing is compiled: it would take minutes, and tell nothing of a GPU's compiler."""
    if device == "cpu":
        import torch._dynamo.config as dynamo

        with mock.patch.object(dynamo, "disable", True):
            yield
    else:
        yield


def free(device: str) -> None:
    """Give the GPU's memory back that nobody holds any more."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def checkpoint(setup: Setup, device: str) -> Iterator[Path]:
    """A folder that is loaded as the published checkpoint, and has random weights, which are made on the device."""
    family, parts = setup.checkpoint.family, setup.checkpoint.parts
    kind = getattr(diffusers, family.pipeline)
    words = [part for part in (*family.parts, *family.optional) if part.startswith("tokenizer")]
    named = {name: ["transformers", _tokenizer(name).__name__] for name in words}
    named |= {name: ["diffusers", part.kind.__name__] for name, part in parts.items()}
    named["scheduler"] = ["diffusers", type(setup.checkpoint.scheduler).__name__]

    def random(name: str, **given: Any) -> Any:
        torch.manual_seed(0)
        dtype = getattr(torch, setup.p.model.dtype)
        made: dict[str, Any] = {part: setup.checkpoint.part(part, dtype, device) for part in parts}
        made |= {name: tokenizer(name) for name in words}
        pipe = kind(**made, scheduler=setup.checkpoint.scheduler, **family.without)
        return pipe.to("cpu") if setup.p.model.offload else pipe

    with tempfile.TemporaryDirectory() as name, mock.patch.object(kind, "from_pretrained", random):
        folder = Path(name)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": family.pipeline, **named}))
        for part in named:
            (folder / part).mkdir()
            (folder / part / "model.safetensors").touch()
        yield folder


def _tokenizer(part: str) -> type[CLIPTokenizer] | type[T5Tokenizer]:
    return T5Tokenizer if part == "tokenizer_3" else CLIPTokenizer


def tokenizer(part: str) -> CLIPTokenizer | T5Tokenizer:
    """Reads letter by letter, and has as many tokens as the published one, those of a text's ends in their places."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    if _tokenizer(part) is T5Tokenizer:
        ends = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
        return T5Tokenizer(vocab=[*ends, *((letter, -1.0) for letter in letters)], extra_ids=0)
    words = [form for letter in letters for form in (letter, f"{letter}</w>")]
    words += [f"{number}</w>" for number in range(len(words), 49406)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
