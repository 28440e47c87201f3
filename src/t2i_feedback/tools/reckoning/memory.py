"""The memory of a published image model's drawing and fine-tuning, part by part.

The model's own networks (networks.py) run on fake tensors, which have sizes and no numbers, through this package's own
policy, loss, adapter and optimiser; every allocation is counted while it lives. Not counted: what CUDA, cuDNN and the
allocator keep for themselves (about 0.5 to 1 GB), and the MLLM, which wants a GPU or a server of its own.
Attention is reckoned as fused (flash or memory-efficient), which PyTorch takes on GPUs for these sizes.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from t2i_feedback.finetuning import optimiser
from t2i_feedback.finetuning.objectives.ddpo import Ddpo
from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Trajectories
from t2i_feedback.image_models.base import ENCODED, Policy
from t2i_feedback.tools.reckoning.counting import counting, materialise
from t2i_feedback.tools.reckoning.networks import TOKENS
from t2i_feedback.tools.reckoning.published import Setup

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
    cast(Any, model).sharing = lambda prompt_index: nullcontext()  # which texts are equal is unknown without numbers
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
    model, part = setup.p.model, cast(Any, setup.part(phase))  # what switches a kind of part has, types cannot say
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
