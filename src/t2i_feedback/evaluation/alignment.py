"""Does an image show what its caption states? An oracle reads the image; `score` compares facts.

The oracle is a small CNN that knows the drawn world's vocabulary and nothing else. It measures, and is never a reward
or a validator. Facts are dicts: `{"background": name | None, "things": [{"kind", "colour", "size", "column"}, ...]}`,
where None means "not stated".
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

NONE, UNCLEAR = "none", "unclear"  # what a slot of the image may hold beside the kinds of the vocabulary
ATTRIBUTES = ("colour", "size", "column")


@dataclass(frozen=True)
class Vocabulary:
    """The words of the drawn world. A slot is a level (ground, sky) and a column; ground slots come first."""

    backgrounds: tuple[str, ...]
    ground_kinds: tuple[str, ...]
    sky_kinds: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def from_config(cls, config: dict[str, list[str]]) -> "Vocabulary":
        return cls(**{name: tuple(config[name]) for name in cls.__dataclass_fields__})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Classes of a slot's first head."""
        return (NONE, UNCLEAR, *self.ground_kinds, *self.sky_kinds)

    @property
    def impossible(self) -> Tensor:
        """bool [slots, kinds]: true where a kind cannot stand in a slot (a house in the sky)."""
        columns, ground, sky = len(self.columns), len(self.ground_kinds), len(self.sky_kinds)
        mask = torch.zeros(2 * columns, 2 + ground + sky, dtype=torch.bool)
        mask[:columns, 2 + ground :] = True
        mask[columns:, 2 : 2 + ground] = True
        return mask


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Oracle(nn.Module):
    """float [B, 3, 64, 64] in 0..1 -> logits of the background, and of kind, colour and size for every slot."""

    def __init__(self, vocabulary: Vocabulary, widths: tuple[int, int, int, int] = (24, 48, 96, 96)) -> None:
        super().__init__()
        self.vocabulary, self.widths = vocabulary, widths
        a, b, c, d = widths
        layers = _block(3, a, 5, 2) + _block(a, b, 3, 2) + _block(b, b, 3, 1)
        layers += _block(b, c, 3, 2) + _block(c, c, 3, 1) + _block(c, d, 3, 2)
        self.features = nn.Sequential(*layers)
        self.slots = 2 * len(vocabulary.columns)
        self.heads = (len(vocabulary.kinds), len(vocabulary.colours), len(vocabulary.sizes))
        self.background = nn.Linear(d * 16, len(vocabulary.backgrounds))
        self.hidden = nn.Sequential(nn.Linear(d * 16, 256), nn.ReLU(inplace=True))
        self.things = nn.Linear(256, self.slots * sum(self.heads))
        self.register_buffer("impossible", vocabulary.impossible, persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits: background [B, backgrounds]; kind, colour and size [B, slots, classes]."""
        features = self.features(pixels * 2 - 1).flatten(1)
        things = self.things(self.hidden(features)).view(len(pixels), self.slots, -1)
        kind, colour, size = things.split(self.heads, dim=-1)
        return self.background(features), kind.masked_fill(self.impossible, -1e4), colour, size

    @torch.no_grad()
    def see(self, pixels: Tensor) -> list[dict]:
        """The facts of each image; something that is no clear object is a thing of kind "unclear"."""
        background, *slots = (logits.argmax(-1).tolist() for logits in self(pixels))
        return [self._facts(*image) for image in zip(background, *slots, strict=True)]

    def _facts(self, background: int, kinds: list[int], colours: list[int], sizes: list[int]) -> dict:
        words, things = self.vocabulary, []
        for slot, (kind, colour, size) in enumerate(zip(kinds, colours, sizes, strict=True)):
            name = words.kinds[kind]
            if name == NONE:
                continue
            clear = name != UNCLEAR
            things.append(
                {
                    "kind": name,
                    "colour": words.colours[colour] if clear else None,
                    "size": words.sizes[size] if clear else None,
                    "column": words.columns[slot % len(words.columns)],
                }
            )
        return {"background": words.backgrounds[background], "things": things}

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"widths": self.widths} | {name: getattr(self.vocabulary, name) for name in self.vocabulary.__dict__}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Oracle":
        """Read a folder of `save_pretrained`; float32, in evaluation mode."""
        config = json.loads((folder / "config.json").read_text())
        oracle = cls(Vocabulary.from_config(config), tuple(config["widths"]))
        oracle.load_state_dict(load_file(folder / "model.safetensors"))
        return oracle.eval()


@dataclass(frozen=True)
class Alignment:
    """How an image answers a caption. Each list has one entry for every fact of that sort that the caption states."""

    share: float  # right facts / (stated facts + uninvited things)
    whole: bool  # every stated fact is right and nothing is uninvited
    uninvited: int  # things seen that the caption does not name
    background: list[bool]
    kind: list[bool]
    colour: list[bool]
    size: list[bool]
    column: list[bool]


def score(facts: dict, seen: dict) -> Alignment:
    """Compare stated with seen facts under the assignment of seen to stated things that makes most facts right.

    Only things of the same kind can be assigned, so a stated thing whose kind is missing has all its facts wrong, and
    a seen thing left over (a copy, another kind, something unclear) is uninvited.
    """
    stated, shown = facts["things"], seen["things"]
    right = np.zeros((len(stated), len(shown)))
    for row, wanted in enumerate(stated):
        for column, thing in enumerate(shown):
            if wanted["kind"] == thing["kind"]:
                right[row, column] = 1 + sum(_agrees(wanted, thing, name) for name in ATTRIBUTES)
    pairs = {row: column for row, column in zip(*linear_sum_assignment(-right), strict=True) if right[row, column]}

    lists: dict[str, list[bool]] = {name: [] for name in ("background", "kind", *ATTRIBUTES)}
    if facts["background"] is not None:
        lists["background"].append(facts["background"] == seen["background"])
    for row, wanted in enumerate(stated):
        thing = shown[pairs[row]] if row in pairs else None
        lists["kind"].append(thing is not None)
        for name in ATTRIBUTES:
            if wanted[name] is not None:
                lists[name].append(thing is not None and _agrees(wanted, thing, name))
    answers = [answer for answers in lists.values() for answer in answers]
    uninvited = len(shown) - len(pairs)
    total = len(answers) + uninvited
    share = sum(answers) / total if total else 1.0
    return Alignment(share, all(answers) and not uninvited, uninvited, **lists)


def _agrees(wanted: dict[str, Any], thing: dict[str, Any], attribute: str) -> bool:
    return wanted[attribute] is not None and wanted[attribute] == thing[attribute]
