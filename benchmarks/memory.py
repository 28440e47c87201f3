"""GPU memory of a published image model under its profile, reckoned without a GPU and without weights.

    python benchmarks/memory.py                  # SD 1.5, profiles/paper.yaml
    python benchmarks/memory.py --family sdxl    # SDXL base, profiles/sdxl.yaml
    python benchmarks/memory.py --family sd35    # SD 3.5 medium, profiles/sd35.yaml, with and without its T5

From the repository's root, some minutes each.

The model's own networks (networks.py) run on fake tensors, which have sizes and no numbers, through this package's own
policy, loss, adapter and optimiser; every allocation is counted while it lives. Not counted: what CUDA, cuDNN and the
allocator keep for themselves (about 0.5 to 1 GB), and the MLLM, which wants a GPU or a server of its own.
Attention is reckoned as fused (flash or memory-efficient), which PyTorch takes on GPUs for these sizes.

Also writes benchmarks/memory.json, or memory-FAMILY.json.
"""

import argparse
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from counting import counting, materialise
from diffusers.utils import logging
from networks import TOKENS
from published import Setup

from t2i_feedback.finetuning import optimiser
from t2i_feedback.finetuning.objectives.ddpo import Ddpo
from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.image_models.base import ENCODED, Policy

logging.set_verbosity_error()  # it would have `dtype` named in from_pretrained, and there is nothing to load

RESULT = Path("benchmarks/memory.json")
LIMIT = 10.0  # GB: ddpo-pytorch's README: "if LoRA is enabled, requires less than 10GB of GPU memory"
CARDS = (24, 40, 80)  # GB
RESERVED = 1.0  # GB of a card that CUDA, cuDNN and the allocator keep
BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # of a linear layer's number; 4 bits have a float32 for 64 of them


@dataclass(frozen=True)
class Step:
    """Gigabytes (10^9 bytes) of one optimiser step on `batch` transitions."""

    weights: float  # of all parts in the profile's precisions
    adapter: float  # in float32
    saved: float  # what the forward pass keeps for the backward pass
    moments: float  # the optimiser's
    peak: float  # of all together


def training(setup: Setup, *, checkpointing: bool, batch: int = 1) -> Step:
    """One forward and backward pass under guidance, and the optimiser's step after it. All parts are on the GPU."""
    key = ("training", checkpointing, batch)
    if key not in setup.known:
        setup.known[key] = _training(setup, checkpointing, batch)
    alone: Step = setup.known[key]
    resting = sum(setup.sizes[name] for name in setup.resting) / 1e9
    return replace(alone, weights=alone.weights + resting, peak=alone.peak + resting)


def _training(setup: Setup, checkpointing: bool, batch: int) -> Step:
    """Of the network alone."""
    p, dtype = setup.p, getattr(torch, setup.p.model.dtype)
    model, _ = setup.with_adapter()
    model.sharing = lambda prompt_index: nullcontext()  # which texts are equal is unknown without numbers
    schedule = setup.schedule(model)
    with counting() as memory:
        materialise(model.network)
        if checkpointing:
            model.network.enable_gradient_checkpointing()
        trained = [weight for weight in model.network.parameters() if weight.requires_grad]
        adapter = sum(weight.nbytes for weight in trained)
        weights = memory.now - adapter
        made = optimiser.make(p.finetune.model_copy(update={"optimiser": "adamw"}), trained)
        x_t, x_prev = (torch.zeros(batch, *model.latent_shape(), dtype=dtype) for _ in range(2))
        null, text = (setup.checkpoint.conditioning(count, p.model) for count in (1, batch))
        step, advantage, image = torch.zeros(batch, dtype=torch.long), torch.ones(batch), torch.arange(batch)
        drawn = Trajectories(torch.stack([x_t, x_prev], 1), torch.zeros(batch, 1), image, [])
        before = memory.since()
        replay = Replay(Policy(model, schedule, p.finetune.guidance_of(p.model.guidance), null), text)
        loss = Ddpo(replay, trained, p.finetune).loss(drawn, advantage, image, step)
        saved = memory.now - before
        loss.value.backward()
        del loss
        before = memory.now
        made.step()
        moments = memory.now - before
        return Step(*(bytes / 1e9 for bytes in (weights, adapter, saved, moments, memory.peak)))


def moments_in_bytes(setup: Setup) -> float:
    """Gigabytes that the moments of adamw8bit take: a byte each and a scale per 256, in tensors above 4,096 numbers."""
    trained = setup.with_adapter()[1]
    return sum(2 * (n * (1 + 4 / 256) if n > 4096 else n * 4) for n in (weight.numel() for weight in trained)) / 1e9


def saved_by(setup: Setup, quantisation: str) -> float:
    """Gigabytes by which the network's weights shrink: its linear layers are stored in fewer bits."""
    layers = [one for one in setup.part(setup.network).modules() if isinstance(one, torch.nn.Linear)]
    return sum(one.weight.nbytes - one.weight.numel() * BYTES[quantisation] for one in layers) / 1e9


def drawing(setup: Setup, batch: int, texts: int | None = None) -> dict[str, float]:
    """Peak gigabytes of each phase of drawing a batch. `texts`: how many are encoded at once, where not the batch."""
    found = {}
    for phase in (*setup.checkpoint.text_encoders, setup.network, "vae"):
        away = [name for name in setup.resting if setup.p.model.offload and name != phase]
        there = sum(size for name, size in setup.sizes.items() if name not in away)
        count = (texts or batch) if phase in setup.checkpoint.text_encoders else batch
        found[phase] = (there + beyond_weights(setup, phase, count)) / 1e9
    return found


def beyond_weights(setup: Setup, phase: str, batch: int) -> int:
    """Bytes that a part takes at most while it works on a batch, its weights apart."""
    switches = {"vae": ("vae_slicing", "vae_tiling", "vae_dtype"), setup.network: ("attention_slicing",)}.get(phase, ())
    key = (phase, batch, *(getattr(setup.p.model, switch) for switch in switches))
    if key not in setup.known:
        setup.known[key] = _beyond_weights(setup, phase, batch)
    return setup.known[key]


def _beyond_weights(setup: Setup, phase: str, batch: int) -> int:
    model, part = setup.p.model, setup.part(phase)
    dtype = getattr(torch, model.dtype)
    drawn = setup.checkpoint.image_model(part, model) if phase == setup.network else None
    shape = setup.latent_shape
    with counting() as memory, torch.no_grad():
        materialise(part)
        if drawn is not None:
            rows = batch * (2 if model.guidance > 1 else 1)
            if model.attention_slicing:
                part.set_attention_slice("auto")
            latents, timesteps = torch.zeros(rows, *shape, dtype=dtype), torch.ones(rows)
            given = setup.checkpoint.conditioning(rows, model)
            before = memory.since()
            drawn.denoise(latents, timesteps, given)
        elif phase == "vae":
            part.use_slicing, part.use_tiling = model.vae_slicing, model.vae_tiling
            latents = torch.zeros(batch, *shape, dtype=part.dtype)
            before = memory.since()
            part.decode(latents)
        else:
            tokens = model.max_sequence_length if phase == "text_encoder_3" else TOKENS
            ids = torch.zeros(batch, tokens, dtype=torch.long)
            before = memory.since()
            part(ids, output_hidden_states=phase != "text_encoder_3")
        return memory.peak - before


def whole_run(setup: Setup) -> dict[str, float]:
    """Peak gigabytes of the phases of fine-tuning: the captions' encoding, rollouts' drawing and decoding, updates."""
    p = setup.p
    update = training(setup, checkpointing=p.finetune.gradient_checkpointing, batch=p.finetune.train_batch_size)
    away = sum(setup.sizes[name] for name in setup.resting) / 1e9 if p.model.offload else 0.0
    beside = update.adapter + update.moments
    drawn = drawing(setup, p.model.batch_size, ENCODED)
    return {
        "texts": max(drawn[name] for name in setup.checkpoint.text_encoders) + beside,
        "drawing": drawn[setup.network] + beside,
        "decoding": drawn["vae"] + beside,
        "update": update.peak - away,
    }


def training_table(setup: Setup, figures: dict[str, Any]) -> None:
    """One step, with one transition and with the profile's, and what switches take away."""
    p = setup.p
    print(f"{'one training step':34s} weights adapter   saved moments    peak")
    for batch in dict.fromkeys((1, p.finetune.train_batch_size)):
        for checkpointing in (False, True):
            step = training(setup, checkpointing=checkpointing, batch=batch)
            name = f"batch {batch}, {'' if checkpointing else 'no '}gradient checkpointing"
            figures[name] = vars(step)
            print(f"{name:34s}" + "".join(f"{value:8.3f}" for value in vars(step).values()), flush=True)
    away = sum(setup.sizes[name] for name in setup.resting) / 1e9
    figures |= {"offload": -away, "adamw8bit moments": moments_in_bytes(setup)}
    print(f"{'model.offload':34s}{'':32s}{-away:8.3f}")
    print(f"{'finetune.optimiser: adamw8bit':34s}{'':24s}{figures['adamw8bit moments']:8.3f}")
    for bits in BYTES:
        figures[f"quantisation {bits}"] = -saved_by(setup, bits)
        print(f"{f'model.quantisation: {bits}':34s}{'':32s}{figures[f'quantisation {bits}']:8.3f}")


def drawing_table(setup: Setup, figures: dict[str, Any]) -> None:
    """A batch of one and the profile's, with the switches of drawing."""
    variants: list[dict[str, Any]] = [
        {},
        {"attention_slicing": True},
        {"vae_slicing": True},
        {"vae_tiling": True},
        {"offload": True},
        {"vae_dtype": "float32"},
        {"vae_dtype": "float32", "vae_slicing": True, "offload": True},
    ]
    plain = {
        "attention_slicing": False,
        "vae_slicing": False,
        "vae_tiling": False,
        "offload": False,
        "vae_dtype": "same",
    }
    if not hasattr(setup.part(setup.network), "set_attention_slice"):  # a transformer has none
        variants.remove({"attention_slicing": True})
    phases = [*setup.checkpoint.text_encoders, setup.network, "vae"]
    print(f"\n{'drawing a batch, peak':44s}" + "".join(f"{phase:>16s}" for phase in phases))
    for batch in dict.fromkeys((1, setup.p.model.batch_size)):
        for changes in variants:
            peaks = drawing(setup.changed("model", **plain | changes), batch)
            name = f"batch {batch}" + "".join(f", {key}" for key in changes)
            figures[f"drawing {name}"] = peaks
            print(f"{name:44s}" + "".join(f"{value:16.2f}" for value in peaks.values()), flush=True)


def cards_table(setup: Setup, figures: dict[str, Any]) -> None:
    """All of fine-tuning, with and without the switches that save most, and the smallest card that takes it."""
    print(f"\n{'fine-tuning, peak':62s}   texts drawing decoding  update    card")
    plain = setup.changed("finetune", gradient_checkpointing=False).changed("model", offload=False, vae_slicing=False)
    saving = plain.changed("finetune", gradient_checkpointing=True)
    resting = saving.changed("model", offload=True, vae_slicing=True)
    single = resting.changed("finetune", train_batch_size=1).changed("model", batch_size=1)
    variants = {
        "no switch": plain,
        "gradient_checkpointing": saving,
        "gradient_checkpointing, offload, vae_slicing": resting,
        "the same, one image and one transition at a time": single,
    }
    if "text_encoder_3" in setup.checkpoint.parts:
        variants |= {f"{name}; no T5": one.without("text_encoder_3") for name, one in variants.items()}
    for name, one in variants.items():
        peaks = whole_run(one)
        card = next((f"{card} GB" for card in CARDS if max(peaks.values()) + RESERVED <= card), "none")
        figures[f"fine-tuning, {name}"] = peaks | {"card": card}
        print(f"{name:62s}" + "".join(f"{value:8.2f}" for value in peaks.values()) + f"{card:>8s}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("sd15", "sdxl", "sd35"), default="sd15")
    family = parser.parse_args().family
    setup, figures = Setup.of(family), {}
    model = setup.p.model
    print(
        f"{model.name}, {model.width} x {model.height}, {model.dtype}, LoRA of rank {setup.p.finetune.lora_rank}; "
        "gigabytes (10^9 bytes)\n"
    )
    training_table(setup, figures)
    drawing_table(setup, figures)
    cards_table(setup, figures)
    if family == "sd15":
        least = figures["batch 1, no gradient checkpointing"]["peak"]
        print(f"\nlimit {LIMIT:g} GB for a training step at batch 1: {'met' if least < LIMIT else 'MISSED'}")
    result = RESULT if family == "sd15" else RESULT.with_stem(f"memory-{family}")
    result.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
