"""Train the CNN that reads scenes off pictures, for measurement (`oracle`) or for labelling (`labeller`).

    PYTHONPATH=src python pretrain/oracle.py oracle      # -> models/postcards/oracle, shipped: measures, never trains
    PYTHONPATH=src python pretrain/oracle.py labeller    # -> pretrain/work/labeller: labels pictures for training

The labeller has another seed, other pictures and another width, so that what is measured was never trained on.
Both learn on pictures that are blurred, noised, darkened and reconstructed badly, and learn to call a thing "unclear"
that is half erased, half another thing, or doubled in place.
"""

import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from pictures import blur, darken, load_renders, uniform
from recipe import (
    Recipe,
    cosine,
    forget_checkpoint,
    load_checkpoint,
    read_recipe,
    save_checkpoint,
    set_rate,
    training_steps,
)
from torch import Generator, Tensor

from t2i_feedback.datasets.postcards import world
from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.evaluation.alignment import UNCLEAR, Oracle, Vocabulary, score

VOCABULARY = Vocabulary(
    world.BACKGROUNDS,
    world.GROUND_KINDS,
    world.SKY_KINDS,
    tuple(world.COLOURS),
    world.SIZES,
    world.COLUMNS,
)
UNCLEAR_CLASS = VOCABULARY.kinds.index(UNCLEAR)
IGNORED = -100  # label of what a slot does not have


def encode_scenes(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Labels: background int64 [N]; slots int64 [N, 6, 3] with kind, colour and size."""
    backgrounds = torch.tensor([VOCABULARY.backgrounds.index(scene.background) for scene in scenes])
    slots = torch.zeros(len(scenes), 2 * len(VOCABULARY.columns), 3, dtype=torch.int64)
    slots[..., 1:] = IGNORED
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            slot = VOCABULARY.columns.index(thing.column) + len(VOCABULARY.columns) * thing.in_sky
            labels = (
                VOCABULARY.kinds.index(thing.kind),
                VOCABULARY.colours.index(thing.colour),
                VOCABULARY.sizes.index(thing.size),
            )
            slots[index, slot] = torch.tensor(labels)
    return backgrounds, slots


def choose_partners(backgrounds: Tensor, generator: Generator) -> Tensor:
    """For every picture another one with the same background: int64 [N]."""
    partners = torch.empty_like(backgrounds)
    for background in backgrounds.unique():
        members = (backgrounds == background).nonzero().flatten()
        partners[members] = members[torch.randperm(len(members), generator=generator)]
    return partners


def spoil(
    pixels: Tensor, slots: Tensor, others: Tensor, other_slots: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mix one slot of each picture with the same place in another picture of the same background.

    Three outcomes: mostly the first (its labels stay), mostly the second (its labels), or half of each: "unclear". The
    halves are side by side, above each other or see-through; or the other picture is the first one moved by a few
    pixels. Where the halves would agree, or a neighbour of the other picture would show, nothing is done.
    """
    count, columns, side = len(pixels), len(VOCABULARY.columns), pixels.shape[-1]
    occupied = (slots[..., 0] > 0).float() + (other_slots[..., 0] > 0).float() * 0.5 + 1e-6
    slot = torch.multinomial(occupied, 1, generator=generator).flatten()
    rows = torch.arange(count)
    mine, theirs = slots[rows, slot], other_slots[rows, slot]

    doubled = (torch.rand(count, generator=generator) < 0.15) & (mine[:, 0] > 0)
    shift = int(torch.randint(5, 9, (), generator=generator)) * random_sign(generator)
    others = torch.where(doubled.view(-1, 1, 1, 1), pixels.roll(shift, 3), others)
    level = slot // columns
    on_level = (other_slots[..., 0] > 0).view(count, 2, columns)[rows, level]
    neighbours = on_level.sum(1) > (theirs[:, 0] > 0)
    useful = doubled | (~neighbours & (mine[:, 0] != theirs[:, 0]))

    # alpha: how much of the other picture shows; 0..0.15 keep mine, 0.35..0.65 unclear, 0.85..1 take theirs
    outcome = torch.randint(0, 3, (count,), generator=generator)
    outcome[doubled] = 1
    low, width = torch.tensor([0.0, 0.35, 0.85])[outcome], torch.tensor([0.15, 0.3, 0.15])[outcome]
    alpha = (low + width * torch.rand(count, generator=generator)).view(-1, 1, 1, 1)
    axis = torch.linspace(0, side - 1, side)
    x_centre = torch.tensor([world.COLUMN_X[column] for column in VOCABULARY.columns])[slot % columns].view(-1, 1, 1, 1)
    y_centre = torch.where(level == 0, world.GROUND_Y - 10, world.SKY_Y).view(-1, 1, 1, 1)
    dx, dy = axis.view(1, 1, 1, -1) - x_centre, axis.view(1, 1, -1, 1) - y_centre
    region = (dx.abs() <= 15) & ((axis.view(1, 1, -1, 1) < 31) == (level == 1).view(-1, 1, 1, 1))
    angle = 6.2832 * torch.rand(count, 1, 1, 1, generator=generator)
    halves = torch.sigmoid(dx * angle.cos() + dy * angle.sin() + uniform(-2, 2, count, generator))
    cut = (torch.rand(count, generator=generator) < 0.6) & (outcome == 1) & ~doubled
    share = torch.where(cut.view(-1, 1, 1, 1), halves, alpha)
    mixed = pixels + (useful.view(-1, 1, 1, 1) * region) * share * (others - pixels)

    unclear = torch.tensor([UNCLEAR_CLASS, IGNORED, IGNORED])
    new = torch.where((outcome == 0)[:, None], mine, torch.where((outcome == 1)[:, None], unclear, theirs))
    slots = slots.clone()
    slots[rows, slot] = torch.where(useful[:, None], new, mine)
    return mixed, slots


def random_sign(generator: Generator) -> int:
    return 1 if torch.rand((), generator=generator) < 0.5 else -1


def degrade(pixels: Tensor, generator: Generator) -> Tensor:
    """Darkness, dull colours, blur, coarse reconstruction, smooth stains and noise, each on a part of the pictures."""
    count, side = len(pixels), pixels.shape[-1]

    def sometimes(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < share).float()

    brightness = 1 - sometimes(0.4) * uniform(0, 0.7, count, generator)
    pixels = darken(pixels, brightness, sometimes(0.3) * uniform(0, 0.65, count, generator))
    coarse = F.interpolate(F.avg_pool2d(pixels, 2), size=(side, side), mode="bilinear")
    pixels = pixels + sometimes(0.25) * uniform(0.3, 0.9, count, generator) * (coarse - pixels)
    pixels = blur(
        pixels,
        sometimes(0.35) * uniform(0, 1, count, generator),
        rounds=int(torch.randint(1, 5, (), generator=generator)),
    )
    stains = F.interpolate(
        torch.randn(count, 3, side // 8, side // 8, generator=generator), size=(side, side), mode="bicubic"
    )
    pixels = pixels + sometimes(0.3) * uniform(0, 0.05, count, generator) * stains * brightness
    noise = torch.randn(pixels.shape, generator=generator)
    pixels = pixels + sometimes(0.3) * uniform(0, 0.06, count, generator) * noise
    return pixels.clamp(0, 1)


def reading_loss(logits: tuple[Tensor, ...], background: Tensor, slots: Tensor) -> Tensor:
    """Cross-entropies of the background and, over the slots, of kind (weight 2), colour (1) and size (0.5)."""
    kind, colour, size = (F.cross_entropy(logits[1 + i].flatten(0, 1), slots[..., i].flatten()) for i in range(3))
    return F.cross_entropy(logits[0], background) + 2 * kind + colour + 0.5 * size


@torch.no_grad()
def accuracy(oracle: Oracle, pixels: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of right readings on pictures (uint8) whose scenes are known."""
    seen = [facts for chunk in pixels.split(200) for facts in oracle.eval().see(chunk.float() / 255)]
    found = [score(scene.to_json(), facts) for scene, facts in zip(scenes, seen, strict=True)]
    lists = {
        name: [answer for f in found for answer in getattr(f, name)]
        for name in ("background", "kind", "colour", "size", "column")
    }
    lists["whole"] = [f.whole for f in found]
    return {name: round(float(np.mean(answers)), 4) for name, answers in lists.items()}


def train(recipe: Recipe) -> Oracle:
    """Train from the last checkpoint, or from the beginning."""
    p = recipe.params
    pictures, scenes = load_renders(recipe.work / "renders")
    chosen = random.Random(p["seed"]).sample(range(len(scenes)), min(p["scenes"], len(scenes)))
    pictures, (backgrounds, slots) = pictures[chosen], encode_scenes([scenes[i] for i in chosen])
    torch.manual_seed(p["seed"])
    generator = Generator().manual_seed(p["seed"])
    oracle = Oracle(VOCABULARY, tuple(p["widths"]))
    optimiser = torch.optim.AdamW(oracle.parameters(), p["learning_rate"], weight_decay=1e-4, fused=True)
    first = 0
    if state := load_checkpoint(recipe.checkpoint):
        first = state["step"]
        oracle.load_state_dict(state["oracle"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
    partners = choose_partners(backgrounds, Generator().manual_seed(p["seed"]))

    oracle.train()
    for step in training_steps(recipe, first):
        set_rate(optimiser, cosine(step, p["steps"], p["learning_rate"]))
        index = torch.randint(0, len(chosen), (p["batch"],), generator=generator)
        other = partners[index]
        pixels, labels = spoil(
            pictures[index].float() / 255, slots[index], pictures[other].float() / 255, slots[other], generator
        )
        loss = reading_loss(oracle(degrade(pixels, generator)), backgrounds[index], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % p["checkpoint_every"] == 0:
            tensors = {"oracle": oracle.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(recipe.checkpoint, tensors | {"generator": generator.get_state(), "step": step + 1})
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    return oracle


def main() -> None:
    role = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in ("oracle", "labeller") else "oracle"
    recipe = read_recipe(__doc__, role)
    oracle = train(recipe)
    oracle.save_pretrained(recipe.models / "oracle" if role == "oracle" else recipe.work / "labeller")
    forget_checkpoint(recipe.checkpoint)
    pictures, scenes = load_renders(recipe.work / "renders", "val_")
    print(role, "on held-out pictures:", accuracy(oracle, pictures, scenes))


if __name__ == "__main__":
    main()
