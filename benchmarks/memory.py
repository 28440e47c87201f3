"""GPU memory of a published image model under its profile, reckoned without a GPU and without weights.

    python benchmarks/memory.py                  # SD 1.5, profiles/paper.yaml
    python benchmarks/memory.py --family sdxl    # SDXL base, profiles/sdxl.yaml
    python benchmarks/memory.py --family sd35    # SD 3.5 medium, profiles/sd35.yaml, with and without its T5

From the repository's root, some minutes each.

How: t2i_feedback/tools/reckoning/memory.py. Also writes benchmarks/memory.json, or memory-FAMILY.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from t2i_feedback.tools.reckoning.memory import (
    BYTES,
    RESERVED,
    drawing,
    moments_in_bytes,
    saved_by,
    training,
    whole_run,
)
from t2i_feedback.tools.reckoning.published import Setup

logging.set_verbosity_error()  # it would have `dtype` named in from_pretrained, and there is nothing to load

RESULT = Path("benchmarks/memory.json")
LIMIT = 10.0  # GB: ddpo-pytorch's README: "if LoRA is enabled, requires less than 10GB of GPU memory"
CARDS = (24, 40, 80)  # GB


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
