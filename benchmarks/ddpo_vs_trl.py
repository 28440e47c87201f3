"""DDPO here against TRL 0.23.1's DDPOTrainer, the last release that has it: equal work, and equal reward.

    python benchmarks/ddpo_vs_trl.py                                    # all parts
    python benchmarks/ddpo_vs_trl.py --part work --repeats 1 --epochs 1 # a first impression
    python benchmarks/ddpo_vs_trl.py --part work --processes 2          # each trainer in two processes of one thread
    python benchmarks/ddpo_vs_trl.py --part reward --seeds 1 --epochs 2

Run it as `PYTHONPATH=src .venv/bin/python ...`, on a machine that does nothing else; all of it takes about an hour.
TRL needs older packages than this project: it gets a virtual environment of its own, .cache/trl-venv, made once.

*work*: the same checkpoint, prompts, adapter and batch arithmetic (`WORK`), float32, one process after the other in
turns. The fastest epoch of each counts: other processes only ever slow a run down. Beside it the floor: the floating-
point operations of the network as it stands, over the rate of a large matrix product on this machine.

*ladder*: the same work by this trainer alone, with one thing more of what it does differently on every rung.

*reward*: how long TRL takes to the reward (darkness: 255 - mean pixel) that it has after its epochs, and how long this
trainer takes to the same. The clock runs while they train. The adapter of every epoch is measured afterwards by one
judge for all: this project's sampler, the same prompts, noise, steps and guidance.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

RESULT = Path("benchmarks/ddpo_vs_trl.json")
PLOT = Path("benchmarks/ddpo_vs_trl.png")
VENV = Path(".cache/trl-venv")
RUNS = Path(".cache/ddpo-vs-trl")
PACKAGES = ("torch==2.13.0", "transformers<5", "diffusers==0.35.2", "peft<0.18", "accelerate<1.12", "trl==0.23.1")
CHECKPOINT = Path("models/postcards/sd")
OLDER = RUNS / "checkpoint"  # the same with its tokenizer as transformers 4 reads it
PROMPTS = (
    "a red house in a meadow",
    "a green tree in the snow",
    "a white boat on a lake",
    "a blue car on a road",
    "a yellow sun over hills",
    "a brown house by night",
    "a black boat in the fog",
    "a pink tree at dusk",
)
TARGETS = ("to_k", "to_q", "to_v", "to_out.0")  # rank 4, alpha 4: fixed in TRL's DefaultDDPOStableDiffusionPipeline
RANK = 4
SPEED_TARGET, REWARD_TARGET = 1.5, 3.0


class Setting(NamedTuple):
    """What a trainer is told. One epoch: `images` drawn, then `images / (train_batch * accumulation)` steps."""

    images: int = 64
    steps: int = 20
    guidance: float = 5.0
    sample_batch: int = 16  # images drawn together
    train_batch: int = 8  # images (TRL, one timestep each) per forward pass; ours counts transitions
    accumulation: int = 2
    learning_rate: float = 3e-4  # TRL's default, like the following
    weight_decay: float = 1e-4
    clip_range: float = 1e-4
    per_prompt: bool = False  # advantages: against the prompt's own images, or against the epoch's
    timestep_share: float = 1.0
    min_sigma: float = 0.0  # ours: steps with less noise are not trained on


WORK = {"trl": Setting(), "ours": Setting(sample_batch=16, train_batch=20)}
# The same work by this trainer with one thing more on every rung; the last is `ours` of WORK. `off`: see SWITCHES.
LADDER = (
    ("8 transitions in a forward pass", WORK["ours"]._replace(train_batch=8), ("texts", "merged")),
    ("20 transitions, those of one image", WORK["ours"], ("texts", "merged")),
    ("a text once for neighbours that have it", WORK["ours"], ("merged",)),
    ("adapter merged", WORK["ours"], ()),
)
FASTER = Setting(
    steps=10,
    sample_batch=32,
    train_batch=40,
    learning_rate=2e-3,
    clip_range=1e-3,
    per_prompt=True,
    timestep_share=0.5,
    min_sigma=0.05,
)
REWARD = {
    "trl": Setting(),
    "trl-tuned": Setting(learning_rate=FASTER.learning_rate, clip_range=FASTER.clip_range),  # what of it is the rate?
    "ours": FASTER,
    "ours-every-step": FASTER._replace(min_sigma=0.0),  # what of it is the last step, which TRL must train on?
}
EVALUATION_IMAGES = 32


# ------------------------------------------------------------------------------------------------ arithmetic


def updates(setting: Setting) -> int:
    """Optimiser steps per epoch, as TRL counts them."""
    return setting.images // (setting.train_batch * setting.accumulation)


def world() -> int:
    """How many processes share a trainer's work: each takes its part of every batch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", "0"))


def floor_seconds(setting: Setting, forward: float, both: float, rate: float) -> tuple[float, float]:
    """Least seconds of an epoch's rollout and update: FLOPs per transition (guidance included) over FLOPs per second.

    `forward` is one denoising step of one image, `both` the same with its backward pass.
    """
    transitions = setting.images * setting.steps
    return transitions * forward / rate, transitions * setting.timestep_share * both / rate


def fastest(epochs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The least of every figure over the epochs, and of rollout and update together."""
    found = {name: min(epoch[name] for epoch in epochs) for name in epochs[0]}
    return found | {"both": min(epoch["rollout"] + epoch["update"] for epoch in epochs)}


def time_to_reward(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Seconds at which the curve (seconds, reward) first reaches the target, on straight lines between its points."""
    if curve[0][1] >= target:
        return curve[0][0]
    for (before, low), (after, high) in itertools.pairwise(curve):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return None


def speed_up(theirs: Sequence[tuple[float, float]], ours: Sequence[tuple[float, float]]) -> float | None:
    """Seconds until their curve first has the reward that it ends with, over ours; 0 if ours never has it.

    None where theirs ends no better than it began: there is nothing to reach.
    """
    target = theirs[-1][1]
    first, mine = time_to_reward(theirs, target), time_to_reward(ours, target)
    if not first:
        return None
    return first / mine if mine else 0.0


# ------------------------------------------------------------------------------------------------ the two trainers


def trl_worker(spec: dict[str, Any]) -> dict[str, Any]:
    """Runs under TRL's own environment."""
    import torch
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    imported = resident()
    PartialState()  # TRL's pipeline logs through it
    setting = Setting(**spec["setting"])
    prompts = itertools.cycle(PROMPTS)
    config = DDPOConfig(
        seed=spec["seed"],
        mixed_precision="no",
        num_epochs=spec["epochs"],
        save_freq=10**9,  # never: saving is not what is measured
        sample_num_steps=setting.steps,
        sample_guidance_scale=setting.guidance,
        sample_batch_size=setting.sample_batch // world(),
        sample_num_batches_per_epoch=setting.images // setting.sample_batch,
        train_batch_size=setting.train_batch // world(),
        train_gradient_accumulation_steps=setting.accumulation,
        train_learning_rate=setting.learning_rate,
        train_adam_weight_decay=setting.weight_decay,
        train_clip_range=setting.clip_range,
        train_timestep_fraction=setting.timestep_share,
        per_prompt_stat_tracking=setting.per_prompt,
    )
    trainer = DDPOTrainer(
        config,
        lambda images, prompts, metadata: (255 - 255 * images.float().mean((1, 2, 3)), {}),
        lambda: (next(prompts), {}),
        DefaultDDPOStableDiffusionPipeline(str(OLDER), use_lora=True),
    )
    clock = Clock(trainer, rollout="_generate_samples", update="_train_batched_samples")
    curve = []
    for epoch in range(spec["epochs"]):
        started = time.perf_counter()
        trainer.step(epoch, epoch)
        curve.append(time.perf_counter() - started)
        tell(spec, epoch, clock)
        if spec["adapters"]:
            state = {name: p.detach() for name, p in trainer.sd_pipeline.unet.named_parameters() if p.requires_grad}
            keep(torch, state, spec, epoch)
    return {"epochs": clock.epochs, "seconds": curve, "beyond_imports": peak() - imported}


def our_worker(spec: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import peft  # noqa: F401  as TRL does: else they would come with the pipeline and count as its memory
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    from t2i_feedback import params
    from t2i_feedback.finetuning.acquisition import Scorer
    from t2i_feedback.finetuning.trainer import Trainer
    from t2i_feedback.image_models.loading import load_image_model

    imported = resident()
    setting = Setting(**spec["setting"])
    model, finetune = our_configuration(params.load(), setting, spec["epochs"])
    image_model = load_image_model(model, training=True)
    parameters = image_model.add_adapter(RANK, RANK, TARGETS, spec["seed"])
    trainer = Trainer(
        image_model,
        parameters,
        PROMPTS,
        Scorer(lambda images, prompts: [255.0 - float(np.asarray(image).mean()) for image in images]),
        lambda images: {"brightness": 0.0, "contrast": 0.0, "sharpness": 0.0},  # only logged
        model=model,
        finetune=finetune,
        seed=spec["seed"],
        folder=Path(spec["folder"]),
    )
    for switch in spec.get("off", ()):
        SWITCHES[switch](trainer)
    clock = Clock(trainer, rollout="roll_out", update="update")
    curve: list[float] = []
    started = time.perf_counter()

    def after(row: Any) -> None:
        nonlocal started
        curve.append(time.perf_counter() - started)
        tell(spec, row.epoch - 1, clock)
        if spec["adapters"]:
            state = {name: p.detach() for name, p in image_model.network.named_parameters() if p.requires_grad}
            keep(torch, state, spec, row.epoch - 1)
        started = time.perf_counter()

    trainer.run(after)
    return {"epochs": clock.epochs, "seconds": curve, "beyond_imports": peak() - imported}


SWITCHES: dict[str, Callable[[Any], None]] = {  # how the trainer does without
    "texts": lambda trainer: setattr(trainer.image_model, "sharing", lambda prompt_index: nullcontext()),
    "merged": lambda trainer: trainer.image_model.adapter.layers.clear(),
}


def our_configuration(p: Any, setting: Setting, epochs: int) -> tuple[Any, Any]:
    """Sections `model` and `finetune` of params.yaml with what the benchmark sets."""
    model = p.model.model_copy(
        update={
            "name": str(CHECKPOINT),
            "dtype": "float32",
            "device": "cpu",
            "steps": setting.steps,
            "guidance": setting.guidance,
            "batch_size": setting.sample_batch // world(),
        }
    )
    finetune = p.finetune.model_copy(
        update={
            "epochs": epochs,
            "prompts_per_epoch": len(PROMPTS),
            "images_per_prompt": setting.images // len(PROMPTS),
            "objective": "ddpo",
            "guidance": None,
            "ema": 0.0,
            "steps": None,
            "noise": p.finetune.noise.model_copy(update={"kind": "ddim", "level": 1.0, "window": None}),
            "inner_epochs": 1,
            "updates_per_epoch": updates(WORK["trl"]),
            "timestep_share": setting.timestep_share,
            "min_sigma": setting.min_sigma,
            "train_batch_size": setting.train_batch // world(),
            "learning_rate": setting.learning_rate,
            "weight_decay": setting.weight_decay,
            "max_grad_norm": 1.0,
            "clip_range": setting.clip_range,
            "advantage": "per_prompt" if setting.per_prompt else "per_batch",
            "advantage_clip": 5.0,
            "kl_weight": 0.0,
            "max_kl": None,
            "max_held_out_drop": None,
            "overlap_judging": False,
            "lora_rank": RANK,
            "lora_alpha": RANK,
            "lora_targets": list(TARGETS),
            "gradient_checkpointing": False,
        }
    )
    return model, finetune


def evaluate_worker(spec: dict[str, Any]) -> list[float]:
    """Mean darkness of the same images for the base model (first) and for every adapter named in `files`."""
    import numpy as np
    import torch

    from t2i_feedback import params
    from t2i_feedback.image_models.loading import load_image_model

    setting = WORK["trl"]
    model, _ = our_configuration(params.load(), setting, 1)
    image_model = load_image_model(model.model_copy(update={"scheduler": "ddim", "eta": 1.0}))
    image_model.add_adapter(RANK, RANK, TARGETS, 0)
    own = {name: p for name, p in image_model.network.named_parameters() if p.requires_grad}
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(spec["images"])]
    rewards = []
    for file in [None, *spec["files"]]:
        if file is not None:
            state = torch.load(file, weights_only=True)
            if state.keys() != own.keys():
                sys.exit(f"{file}: its adapter's parameters are not named like ours")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(state[name])
        drawn = image_model.draw(prompts, range(spec["images"]))
        rewards.append(float(np.mean([255.0 - np.asarray(image).mean() for image in drawn])))
        print(f"  {file or 'base'}: {rewards[-1]:.2f}", flush=True)
    return rewards


def floor_worker(spec: dict[str, Any]) -> dict[str, float]:
    """FLOPs of one transition of the network as it stands, and this machine's FLOPs per second."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from t2i_feedback import params
    from t2i_feedback.image_models.loading import load_image_model

    model, _ = our_configuration(params.load(), WORK["trl"], 1)
    image_model = load_image_model(model)
    image_model.add_adapter(RANK, RANK, TARGETS, 0)
    given, timesteps = image_model.encode(["", PROMPTS[0]]), torch.tensor([500, 500])
    x = torch.randn(2, *image_model.latent_shape())

    def count(backward: bool) -> int:
        with sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counted:
            output = image_model.denoise(x, timesteps, given)
            if backward:
                output.sum().backward()
        return counted.get_total_flops()

    side = 2048
    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return {"forward": count(False), "both": count(True), "rate": 2 * side**3 / min(seconds)}


class Clock:
    """Wall-clock and processor seconds spent in two methods of a trainer, epoch by epoch."""

    def __init__(self, trainer: Any, **methods: str):
        self.epochs: list[dict[str, float]] = []
        self._now: dict[str, float] = {}
        self._parts = list(methods)
        for part, method in methods.items():
            setattr(trainer, method, self._timed(part, getattr(trainer, method)))

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            wall, processor = time.perf_counter(), time.process_time()
            try:
                return method(*given, **named)
            finally:
                self._now[part] = time.perf_counter() - wall
                self._now[f"{part}_cpu"] = time.process_time() - processor
                if part == self._parts[-1]:
                    self.epochs.append(self._now)
                    self._now = {}

        return timed


def resident() -> float:
    """MiB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """MiB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def tell(spec: dict[str, Any], epoch: int, clock: Clock) -> None:
    if rank() > 0:
        return
    last = clock.epochs[-1]
    print(
        f"  {spec['trainer']:9s} seed {spec['seed']} epoch {epoch + 1}/{spec['epochs']}: "
        f"rollout {last['rollout']:.1f} s, update {last['update']:.1f} s "
        f"(processor {last['rollout_cpu']:.1f} + {last['update_cpu']:.1f} s)",
        flush=True,
    )


def keep(torch: Any, state: dict[str, Any], spec: dict[str, Any], epoch: int) -> None:
    torch.save(state, Path(spec["folder"]) / f"adapter-{epoch + 1:03d}.pt")


WORKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "trl": trl_worker,
    "trl-tuned": trl_worker,
    "ours": our_worker,
    "ours-every-step": our_worker,
    "evaluate": evaluate_worker,
    "floor": floor_worker,
}


# ------------------------------------------------------------------------------------------------ running them


def trl_python() -> str:
    """TRL's interpreter; its environment is made if it is not there."""
    python, ready = VENV / "bin" / "python", VENV / ".ready"
    if not ready.exists() or ready.read_text().split("\n") != list(PACKAGES):
        print(f"making {VENV} with {', '.join(PACKAGES)}: some minutes, 5 GB where torch brings CUDA", flush=True)
        make_environment()
        made = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
            stderr=subprocess.PIPE,
            text=True,
        )
        if made.returncode:
            errors = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            sys.exit(
                f"{VENV}: TRL could not be installed ({errors[0]}). Is the package registry in reach? Nothing is "
                "compared without TRL; run again when it is"
            )
        ready.write_text("\n".join(PACKAGES))
    return str(python)


def make_environment() -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)


def as_transformers_4_reads_it() -> None:
    """CHECKPOINT's parts under OLDER, with the tokenizer's one file taken apart into vocabulary and merges."""
    shutil.rmtree(OLDER, ignore_errors=True)
    (OLDER / "tokenizer").mkdir(parents=True)
    for part in CHECKPOINT.iterdir():
        if part.name != "tokenizer":
            (OLDER / part.name).symlink_to(part.resolve())
    words = json.loads((CHECKPOINT / "tokenizer" / "tokenizer.json").read_text())["model"]
    settings = json.loads((CHECKPOINT / "tokenizer" / "tokenizer_config.json").read_text())
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in words["merges"])])
    for file, text in (
        ("vocab.json", json.dumps(words["vocab"])),
        ("merges.txt", merges + "\n"),
        ("tokenizer_config.json", json.dumps(settings)),
    ):
        (OLDER / "tokenizer" / file).write_text(text)


def run(trainer: str, options: argparse.Namespace, name: str, *, processes: int = 1, **spec: Any) -> Any:
    """Run one worker in processes of its own and return what the first found, and the memory of all."""
    folder = RUNS / name
    spec |= {"trainer": trainer, "folder": str(folder)}
    asked, found = folder / "spec.json", folder / "result.json"
    told = json.dumps(spec | {"threads": options.threads, "processes": processes})
    if options.resume and found.exists() and asked.exists() and asked.read_text() == told:
        print(f"  {name}: as measured before", flush=True)
        return json.loads(found.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked.write_text(told)
    python = sys.executable
    if trainer.startswith("trl"):
        python = trl_python()
        as_transformers_4_reads_it()
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": str(options.threads // processes),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    errors = folder / "stderr.txt"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [python, *(launcher if processes > 1 else ()), __file__, "--worker", json.dumps(spec)],
        env=os.environ | quiet,
        stderr=errors.open("w"),
    )
    if done.returncode:
        last = errors.read_text().strip().splitlines() or ["no message"]
        sys.exit(f"{trainer} failed with status {done.returncode}: {last[-1]} (all of it in {errors})")
    first, *others = (json.loads((folder / f"result-{number}.json").read_text()) for number in range(processes))
    for other in others:
        first["beyond_imports"] += other["beyond_imports"]
    found.write_text(json.dumps(first))
    return first


def equal_work(options: argparse.Namespace) -> dict[str, Any]:
    """Images per second of both, their memory, and the share of the floor that each reaches."""
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
    for turn in range(options.repeats):
        for trainer, setting in WORK.items():
            found[trainer].append(
                run(
                    trainer,
                    options,
                    f"work-{trainer}-{turn}" + f"-of-{options.processes}" * (options.processes > 1),
                    processes=options.processes,
                    setting=setting._asdict(),
                    seed=1,
                    epochs=options.epochs or 2,
                    adapters=False,
                )
            )
    floor = run("floor", options, "floor")
    least = floor_seconds(WORK["trl"], **floor)
    images = WORK["trl"].images
    figures: dict[str, Any] = {"floor": floor | {"rollout_seconds": least[0], "update_seconds": least[1]}}
    shared = f"{options.threads} threads, {options.processes} process" + "es" * (options.processes > 1)
    print(f"\nequal work, {shared}: the fastest of {options.repeats} x {options.epochs or 2} epochs")
    print(f"{'':10s}{'rollout':>10s}{'update':>10s}{'both':>10s} images/s {'share of floor':>16s}{'MiB':>8s}")
    for trainer, runs in found.items():
        best = fastest([epoch for one in runs for epoch in one["epochs"]])
        best |= {"beyond_imports": max(one["beyond_imports"] for one in runs), "share": sum(least) / best["both"]}
        figures[trainer] = best | {"runs": runs}
        rates = "".join(f"{images / best[part]:10.2f}" for part in ("rollout", "update", "both"))
        print(f"{trainer:10s}{rates} {'':10s} {best['share']:16.0%}{best['beyond_imports']:8.0f}")
    theirs, ours = figures["trl"], figures["ours"]
    ratios = {part: theirs[part] / ours[part] for part in ("rollout", "update", "both")}
    ratios["processor"] = (theirs["rollout_cpu"] + theirs["update_cpu"]) / (ours["rollout_cpu"] + ours["update_cpu"])
    figures["ratios"] = ratios | {"memory": ours["beyond_imports"] / theirs["beyond_imports"]}
    print(f"{'ratio':10s}{ratios['rollout']:10.2f}{ratios['update']:10.2f}{ratios['both']:10.2f}")
    print(
        f"floor: {floor['forward'] / 1e9:.2f} GFLOP a step, {floor['both'] / 1e9:.2f} with its backward pass, at "
        f"{floor['rate'] / 1e9:.0f} GFLOP/s: {least[0]:.1f} + {least[1]:.1f} s an epoch"
    )
    say("rollout and update, TRL's seconds over ours", ratios["both"], SPEED_TARGET)
    print(f"  the same in processor seconds: {ratios['processor']:.2f}")
    say("memory beyond imports, TRL's over ours", 1 / figures["ratios"]["memory"], 1.0)
    return figures


def ladder(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images per second of this trainer with one thing more on every rung."""
    found: list[list[dict[str, Any]]] = [[] for _ in LADDER]
    for turn in range(options.repeats):
        for rung, (_, setting, off) in enumerate(LADDER):
            name, epochs = f"ladder-{rung}-{turn}", options.epochs or 2
            given = {"setting": setting._asdict(), "off": off, "seed": 1, "epochs": epochs, "adapters": False}
            found[rung].append(run("ours", options, name, **given))
    print(f"\n{'one thing more on every line':40s}{'rollout':>10s}{'update':>10s}{'both':>10s} images/s{'MiB':>8s}")
    figures = []
    for (name, setting, _), runs in zip(LADDER, found, strict=True):
        best = fastest([epoch for one in runs for epoch in one["epochs"]])
        best["beyond_imports"] = max(one["beyond_imports"] for one in runs)
        rates = "".join(f"{setting.images / best[part]:10.2f}" for part in ("rollout", "update", "both"))
        print(f"{name:40s}{rates} {'':10s}{best['beyond_imports']:8.0f}")
        figures.append({"name": name} | best)
    return figures


def equal_reward(options: argparse.Namespace) -> dict[str, Any]:
    """Rewards over seconds of every trainer and seed, and how much sooner ours has the reward that TRL ends with."""
    settings = {name: s for name, s in REWARD.items() if name != "trl-tuned" or not options.no_tuned}
    curves: dict[str, list[list[tuple[float, float]]]] = {trainer: [] for trainer in settings}
    for seed, (trainer, setting) in itertools.product(options.seeds, settings.items()):
        name, epochs = f"reward-{trainer}-{seed}", options.epochs or 10
        done = run(trainer, options, name, setting=setting._asdict(), seed=seed, epochs=epochs, adapters=True)
        files = [str(file) for file in sorted((RUNS / name).glob("adapter-*.pt"))]
        name = f"evaluate-{trainer}-{seed}"
        rewards = run("evaluate", options, name, files=files, images=EVALUATION_IMAGES)
        seconds = [0.0, *itertools.accumulate(done["seconds"])]
        curves[trainer].append(list(zip(seconds, rewards, strict=True)))
    figures: dict[str, Any] = {"curves": curves, "settings": {name: s._asdict() for name, s in settings.items()}}
    for trainer in settings:
        ends = ", ".join(
            f"{curve[0][1]:.1f} -> {curve[-1][1]:.1f} in {curve[-1][0]:.0f} s" for curve in curves[trainer]
        )
        print(f"{trainer:16s} reward {ends}")
    for against in (name for name in settings if name.startswith("trl")):
        ratios = [speed_up(theirs, ours) for theirs, ours in zip(curves[against], curves["ours"], strict=True)]
        figures[f"{against} over ours"] = ratios
        known = [ratio for ratio in ratios if ratio is not None]
        if len(known) < len(ratios):
            print(f"{against}: {len(ratios) - len(known)} of {len(ratios)} seeds end no better than they began")
        what = f"time to {against}'s last reward, its over ours: {', '.join(f'{ratio:.0f}' for ratio in known)}"
        if len(known) == len(ratios):
            say(f"{what}; the least", min(known), REWARD_TARGET)
        elif known:
            print(what)
    plot(curves)
    return figures


def plot(curves: dict[str, list[list[tuple[float, float]]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    colours = {
        "trl": "tab:orange",
        "trl-tuned": "tab:red",
        "ours": "tab:blue",
        "ours-every-step": "tab:cyan",
    }
    for trainer, seeds in curves.items():
        for number, curve in enumerate(seeds):
            label = trainer if number == 0 else None
            axes.plot(*zip(*curve, strict=True), "o-", markersize=3, color=colours[trainer], label=label)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("255 - mean pixel of the same images")
    axes.legend()
    figure.savefig(PLOT, dpi=120)
    pyplot.close(figure)
    print(f"curves in {PLOT}")


def say(what: str, figure: float, target: float) -> None:
    print(f"{what}: {figure:.2f} (target {target:g}, {'met' if figure >= target else 'MISSED'})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "work", "ladder", "reward"), default="all")
    parser.add_argument("--repeats", type=int, default=3, help="work, ladder: how often each has its turn")
    parser.add_argument("--epochs", type=int, help="per run (default: work and ladder 2, reward 10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="reward: one run of each per seed")
    parser.add_argument("--no-tuned", action="store_true", help="reward: leave out TRL with our rate and clip range")
    parser.add_argument("--threads", type=int, default=2, help="of each trainer, in all its processes together")
    parser.add_argument("--processes", type=int, default=1, help="work: of each trainer")
    parser.add_argument("--resume", action="store_true", help="go on from an interrupted comparison of the same code")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    batches = [batch for setting in WORK.values() for batch in (setting.sample_batch, setting.train_batch)]
    if options.processes < 1 or any(number % options.processes for number in (options.threads, *batches)):
        parser.error(
            f"--processes {options.processes}: --threads {options.threads} and batches of "
            f"{', '.join(map(str, batches))} must divide by it"
        )
    if options.worker:
        spec = json.loads(options.worker)
        found = WORKERS[spec["trainer"]](spec)
        if world() > 1:  # nobody's end is to look like a failure to the others
            from torch import distributed

            distributed.barrier()
            distributed.destroy_process_group()
        (Path(spec["folder"]) / f"result-{rank()}.json").write_text(json.dumps(found))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; TRL's settings: {WORK['trl']}", flush=True)
    figures = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part, measure in (("work", equal_work), ("ladder", ladder), ("reward", equal_reward)):
        if options.part in ("all", part):
            shared = part == "work" and options.processes > 1
            figures[f"{part}, {options.processes} processes" if shared else part] = measure(options)
            RESULT.write_text(json.dumps(figures | {"cores": os.cpu_count()}, indent=2) + "\n")
    print(f"figures in {RESULT}")


if __name__ == "__main__":
    main()
