"""Train the vision towers of the tiny MLLMs: small Swin transformers that read scenes and looks from 64 x 64 pictures.

    PYTHONPATH=src python pretrain/mllm_tower.py --model mllm      # or: --model judge

Every one of the 16 output tokens learns to tell, by linear heads shared over the tokens, where it is, what stands in
its region (kind or nothing, colour, size), the background, and how dark, muted and blurred the picture is. A language
model can then find all of it in the tokens, "on the left" as easily as "red". Half of the pictures are restyled. Writes
`pretrain/work/mllm/{model}_tower/` (config.json, model.safetensors, tower.json with the accuracy on held-out scenes).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mllm_muon import make_optimisers
from mllm_recipe import read_model_recipe
from mllm_style import TRAITS, restyle, trait_levels
from recipe import Recipe, cosine, forget_checkpoint, load_checkpoint, save_checkpoint, set_rate, training_steps
from safetensors.torch import load_file
from torch import nn
from transformers import SwinConfig, SwinModel

from t2i_feedback.datasets.postcards.world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, SIZES, Scene

GRID = 4  # output tokens to a side
COLUMN_OF_TOKEN = (0, 1, 1, 2)  # the two middle token columns share the centre
HEADS = {
    "kind": len(KINDS) + 1,
    "colour": len(COLOURS),
    "size": len(SIZES),
    "background": len(BACKGROUNDS),
    "region": 6,
    "look": 3,
}


@dataclass(frozen=True)
class SceneLabels:
    """What the six regions (sky, then ground; left, centre, right) of N pictures show. Kind 0 is an empty region."""

    background: torch.Tensor  # [N]
    kind: torch.Tensor  # [N, 6]
    colour: torch.Tensor  # [N, 6]; -1 where the region is empty, ignored by the loss
    size: torch.Tensor  # [N, 6]; likewise

    def take(self, index: torch.Tensor) -> "SceneLabels":
        return SceneLabels(self.background[index], self.kind[index], self.colour[index], self.size[index])


def label_scenes(scenes: list[Scene]) -> SceneLabels:
    """Class indices of every scene's background and regions."""
    background = torch.tensor([BACKGROUNDS.index(scene.background or "") for scene in scenes])
    kind = torch.zeros(len(scenes), 6, dtype=torch.long)
    colour, size = torch.full_like(kind, -1), torch.full_like(kind, -1)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            region = COLUMNS.index(thing.column or "") + (0 if thing.in_sky else 3)
            kind[row, region] = KINDS.index(thing.kind) + 1
            colour[row, region] = list(COLOURS).index(thing.colour or "")
            size[row, region] = SIZES.index(thing.size or "")
    return SceneLabels(background, kind, colour, size)


def regions_of_tokens() -> torch.Tensor:
    """The region, 0..5, that each of the 16 tokens lies in."""
    rows = [[COLUMN_OF_TOKEN[column] + (0 if row < GRID // 2 else 3) for column in range(GRID)] for row in range(GRID)]
    return torch.tensor(rows).flatten()


class SceneReader(nn.Module):
    """The tower with the linear heads that train it."""

    def __init__(self, config: dict):
        super().__init__()
        self.tower = SwinModel(SwinConfig(**config), add_pooling_layer=False)
        self.heads = nn.ModuleDict({name: nn.Linear(self.tower.num_features, size) for name, size in HEADS.items()})

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, 64, 64] in 0..1 to the tokens [N, 16, C] that LLaVA reads."""
        return self.tower(images * 2 - 1, output_hidden_states=True).hidden_states[-1]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = F.layer_norm(self.tokens(images), (self.tower.num_features,))
        return {name: head(tokens) for name, head in self.heads.items()}


def reading_loss(read: dict[str, torch.Tensor], labels: SceneLabels, levels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token's region, of the background, and the squared error of the look."""
    regions = regions_of_tokens()
    count = len(levels)
    kind = F.cross_entropy(read["kind"].flatten(0, 1), labels.kind[:, regions].flatten())
    colour = F.cross_entropy(read["colour"].flatten(0, 1), labels.colour[:, regions].flatten(), ignore_index=-1)
    size = F.cross_entropy(read["size"].flatten(0, 1), labels.size[:, regions].flatten(), ignore_index=-1)
    ground = labels.background[:, None].expand(count, GRID * GRID)
    background = F.cross_entropy(read["background"].flatten(0, 1), ground.flatten())
    region = F.cross_entropy(read["region"].flatten(0, 1), regions.repeat(count))
    look = F.mse_loss(read["look"], levels[:, None].expand_as(read["look"]))
    return 2 * kind + colour + 0.5 * size + 0.3 * background + 0.3 * region + 10 * look


@torch.no_grad()
def accuracy(reader: SceneReader, images: torch.Tensor, labels: SceneLabels) -> dict[str, float]:
    """Share of backgrounds, of filled regions' kinds, colours and sizes, and of whole scenes that are read rightly.

    And the correlation of every trait as read with the trait as measured on the picture.
    """
    reader.eval()
    chunks = [reader(chunk) for chunk in images.split(250)]
    reader.train()
    read = {name: torch.cat([chunk[name] for chunk in chunks]) for name in HEADS}
    member = F.one_hot(regions_of_tokens()).float()  # [16, 6]
    mean = {name: torch.einsum("ntc,tr->nrc", values.log_softmax(-1), member) for name, values in read.items()}
    filled = labels.kind > 0
    right = {name: mean[name].argmax(-1) == getattr(labels, name) for name in ("kind", "colour", "size")}
    background = read["background"].mean(1).argmax(-1) == labels.background
    whole = background & right["kind"].all(1) & ((right["colour"] & right["size"]) | ~filled).all(1)
    shares = {name: right[name][filled].float().mean().item() for name in right}
    shares |= {"background": background.float().mean().item(), "scene": whole.float().mean().item()}
    looks = torch.stack([read["look"].mean(1), trait_levels(images)], dim=-1).unbind(1)
    shares |= {name: torch.corrcoef(look.T)[0, 1].item() for name, look in zip(TRAITS, looks, strict=True)}
    return {name: round(value, 4) for name, value in shares.items()}


def load_renders(folder: Path, prefix: str = "", limit: int | None = None) -> tuple[torch.Tensor, list[Scene]]:
    """Rendered pictures, uint8 [N, 3, 64, 64], and their scenes."""
    images = load_file(folder / f"{prefix}images.safetensors")["images"][:limit]
    facts = json.loads((folder / f"{prefix}scenes.json").read_text())[:limit]
    return images, [Scene.from_json(scene) for scene in facts]


def train(recipe: Recipe) -> None:
    """Train one tower; an interrupted training goes on from its last checkpoint."""
    params = recipe.params
    torch.manual_seed(params["seed"])
    generator = torch.Generator().manual_seed(params["seed"])
    images, scenes = load_renders(recipe.work / "renders", limit=params["scenes"])
    val_images, val_scenes = load_renders(recipe.work / "renders", "val_")
    labels, val_labels = label_scenes(scenes), label_scenes(val_scenes)
    reader = SceneReader(params["tower"])
    optimisers = make_optimisers(reader, params["learning_rate"])
    first = 0
    if saved := load_checkpoint(recipe.checkpoint):
        first = saved["step"]
        reader.load_state_dict(saved["model"])
        generator.set_state(saved["generator"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    for step in training_steps(recipe, first):
        index = torch.randint(len(images), (params["batch"],), generator=generator)
        batch = images[index].float() / 255
        half = len(batch) // 2
        batch = torch.cat([restyle(batch[:half], generator), batch[half:]])
        loss = reading_loss(reader(batch), labels.take(index), trait_levels(batch))
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        for optimiser in optimisers:
            set_rate(optimiser, cosine(step, params["steps"], params["learning_rate"]))
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % params["checkpoint_every"] == 0:
            print(
                f"\nstep {step + 1} loss {loss.item():.3f} {accuracy(reader, val_images / 255, val_labels)}", flush=True
            )
            state = {"step": step + 1, "model": reader.state_dict(), "generator": generator.get_state()}
            save_checkpoint(recipe.checkpoint, state | {"optimisers": [o.state_dict() for o in optimisers]})
    folder = recipe.work / "mllm" / recipe.section
    reader.tower.save_pretrained(folder)
    plain = accuracy(reader, val_images / 255, val_labels)
    styled = accuracy(reader, restyle(val_images / 255, generator), val_labels)
    (folder / "tower.json").write_text(json.dumps({"plain": plain, "restyled": styled}, indent=2))
    forget_checkpoint(recipe.checkpoint)
    print(recipe.section, "plain", plain, "restyled", styled)


def main() -> None:
    train(read_model_recipe(__doc__, "tower"))


if __name__ == "__main__":
    main()
