"""GPU memory of Stable Diffusion 1.5 under profiles/paper.yaml, reckoned without a GPU and without weights.

    python benchmarks/memory.py      # from the repository's root, a minute or two; also writes benchmarks/memory.json

SD 1.5's own networks run on fake tensors, which have sizes and no numbers, through this package's own policy, loss,
adapter and optimiser; every allocation is counted while it lives. Not counted: what CUDA, cuDNN and the allocator keep
for themselves (about 0.5 to 1 GB), and the MLLM, which wants a GPU or a server of its own.
Attention is reckoned as fused (flash or memory-efficient), which PyTorch takes on GPUs for these sizes.
"""

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from t2i_feedback import params
from t2i_feedback.finetuning import objectives, optimiser
from t2i_feedback.image_models import base, transitions
from t2i_feedback.image_models.lora import add_adapter
from t2i_feedback.tools import profile

logging.set_verbosity_error()  # it would have `dtype` named in from_pretrained, and there is nothing to load

RESULT = Path("benchmarks/memory.json")
LIMIT = 10.0  # GB: ddpo-pytorch's README: "if LoRA is enabled, requires less than 10GB of GPU memory"
TOKENS = 77

# unet/, vae/ and text_encoder/config.json of stable-diffusion-v1-5, without what is the classes' default
UNET = {
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "sample_size": 64,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


class Memory(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def since(self) -> int:
        """Bytes alive; the peak is counted anew from here."""
        self.peak = self.now
        return self.now


@dataclass(frozen=True)
class Step:
    """Gigabytes (10^9 bytes) of one optimiser step on `batch` transitions."""

    weights: float  # UNet, VAE and text encoder in the profile's precision
    adapter: float  # in float32
    saved: float  # what the forward pass keeps for the backward pass
    moments: float  # the optimiser's
    peak: float  # of all together


def paper() -> params.Params:
    """The parameters of profiles/paper.yaml."""
    return params.check(yaml.safe_load(profile.merge("paper")), "profiles/paper.yaml")


def network(part: str, dtype: torch.dtype) -> torch.nn.Module:
    """A part of SD 1.5, frozen, on the meta device."""
    make = {
        "unet": lambda: UNet2DConditionModel(**UNET),
        "vae": lambda: AutoencoderKL(**VAE),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXT)),
    }[part]
    with torch.device("meta"):
        return make().to(dtype).requires_grad_(False).eval()


def materialise(module: torch.nn.Module) -> torch.nn.Module:
    """The module with tensors of the present (fake) mode in the place of those on the meta device."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


@contextmanager
def counting() -> Iterator[Memory]:
    with FakeTensorMode(allow_non_fake_inputs=True), Memory() as memory:
        yield memory


def training(p: params.Params, *, checkpointing: bool, batch: int = 1) -> Step:
    """One forward and backward pass under guidance, and the optimiser's step after it."""
    dtype, side = getattr(torch, p.model.dtype), p.model.size // 8
    schedule = transitions.Schedule.of(DDIMScheduler(**SCHEDULER), p.model.steps, p.finetune.eta)
    unet = network("unet", dtype)
    with torch.device("meta"):
        add_adapter(unet, p.finetune.lora_rank, p.finetune.lora_alpha, p.finetune.lora_targets, p.seed)
    resting = [network(part, dtype) for part in ("vae", "text_encoder")]
    with counting() as memory:
        for module in (unet, *resting):
            materialise(module)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        trained = [weight for weight in unet.parameters() if weight.requires_grad]
        adapter = sum(weight.nbytes for weight in trained)
        weights = memory.now - adapter
        made = optimiser.make(p.finetune.model_copy(update={"optimiser": "adamw"}), trained)
        x_t, x_prev = (torch.zeros(batch, 4, side, side, dtype=dtype) for _ in range(2))
        null, text = (torch.zeros(count, TOKENS, UNET["cross_attention_dim"], dtype=dtype) for count in (1, batch))
        step, old, advantage = torch.zeros(batch, dtype=torch.long), torch.zeros(batch), torch.ones(batch)
        before = memory.since()
        mean = base.Policy(unet, schedule, p.model.guidance, null).mean(x_t, step, text)
        log_prob = transitions.log_prob(schedule, step, mean, x_prev)
        loss = objectives.load(p.finetune.objective)(log_prob, old, advantage, p.finetune.clip_range)
        saved = memory.now - before
        loss.backward()
        del mean, log_prob, loss
        before = memory.now
        made.step()
        moments = memory.now - before
        return Step(*(size / 1e9 for size in (weights, adapter, saved, moments, memory.peak)))


def moments_in_bytes(p: params.Params) -> float:
    """Gigabytes that the moments of adamw8bit take: a byte each and a scale per 256, in tensors above 4,096 numbers."""
    unet = network("unet", torch.float16)
    with torch.device("meta"):
        trained = add_adapter(unet, p.finetune.lora_rank, p.finetune.lora_alpha, p.finetune.lora_targets, p.seed)
    return sum(2 * (n * (1 + 4 / 256) if n > 4096 else n * 4) for n in (weight.numel() for weight in trained)) / 1e9


def drawing(p: params.Params, batch: int, **changes: Any) -> dict[str, float]:
    """Peak gigabytes of each phase of drawing a batch, with `changes` of the model's switches."""
    model = p.model.model_copy(update=changes)
    dtype, side = getattr(torch, model.dtype), model.size // 8
    vae_dtype = torch.float32 if model.vae_dtype == "float32" else dtype
    found = {}
    parts = {name: network(name, vae_dtype if name == "vae" else dtype) for name in PARAMETERS}
    with counting() as memory, torch.no_grad():
        if model.attention_slicing:
            parts["unet"].set_attention_slice("auto")
        parts["vae"].use_slicing, parts["vae"].use_tiling = model.vae_slicing, model.vae_tiling
        latents = torch.zeros(batch, 4, side, side, dtype=dtype)
        text = torch.zeros(2 * batch, TOKENS, UNET["cross_attention_dim"], dtype=dtype)
        phases = {
            "text_encoder": lambda: parts["text_encoder"](torch.zeros(batch, TOKENS, dtype=torch.long)),
            "unet": lambda: parts["unet"](torch.cat([latents] * 2), torch.tensor(1), encoder_hidden_states=text),
            "vae": lambda: parts["vae"].decode(latents.to(vae_dtype)),
        }
        for module in parts.values():
            materialise(module)
        weights = {name: sum(tensor.nbytes for tensor in module.parameters()) for name, module in parts.items()}
        for name, run in phases.items():
            memory.since()
            run()
            away = sum(size for other, size in weights.items() if model.offload and other not in ("unet", name))
            found[name] = (memory.peak - away) / 1e9
    return found


def main() -> None:
    p = paper()
    title = f"SD 1.5, {p.model.size} x {p.model.size}, {p.model.dtype}, LoRA of rank {p.finetune.lora_rank}"
    print(f"{title}; gigabytes (10^9 bytes)\n\n{'one training step':34s} weights adapter   saved moments    peak")
    figures: dict[str, Any] = {}
    for batch in dict.fromkeys((1, p.finetune.train_batch_size)):
        for checkpointing in (False, True):
            step = training(p, checkpointing=checkpointing, batch=batch)
            name = f"batch {batch}, {'' if checkpointing else 'no '}gradient checkpointing"
            figures[name] = vars(step)
            print(f"{name:34s}" + "".join(f"{value:8.3f}" for value in vars(step).values()), flush=True)
    away = sum(PARAMETERS[part] for part in ("vae", "text_encoder")) * 2 / 1e9
    figures |= {"offload": -away, "adamw8bit moments": moments_in_bytes(p)}
    print(f"{'model.offload':34s}{'':32s}{-away:8.3f}")
    print(f"{'finetune.optimiser: adamw8bit':34s}{'':24s}{figures['adamw8bit moments']:8.3f}\n")
    print(f"{'drawing a batch, peak':44s}{'text':>8s}{'unet':>8s}{'vae':>8s}")
    variants: list[dict[str, Any]] = [
        {},
        {"attention_slicing": True},
        {"vae_slicing": True},
        {"vae_tiling": True},
        {"offload": True},
        {"vae_dtype": "float32"},
        {"vae_dtype": "float32", "vae_slicing": True, "offload": True},
    ]
    for batch in dict.fromkeys((1, p.model.batch_size)):
        for changes in variants:
            peaks = drawing(p, batch, **changes)
            name = f"batch {batch}" + "".join(f", {key}" for key in changes)
            figures[f"drawing {name}"] = peaks
            print(f"{name:44s}" + "".join(f"{value:8.2f}" for value in peaks.values()), flush=True)
    least = figures["batch 1, no gradient checkpointing"]["peak"]
    print(f"\nlimit {LIMIT:g} GB for a training step at batch 1: {'met' if least < LIMIT else 'MISSED'}")
    RESULT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
