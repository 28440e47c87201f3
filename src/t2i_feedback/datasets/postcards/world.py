"""What the drawn world holds: scenes of a background and one or two things, each described by facts.

A thing has a kind, a colour, a size and a column. The same classes say what an image shows and what a caption states.
"""

import hashlib
import json
import random
from dataclasses import asdict, dataclass

SIDE = 64  # pixels

BACKGROUNDS = ("meadow", "beach", "snow", "desert", "city", "sunset", "lake")
GROUND_KINDS = ("house", "tree", "car", "boat", "flower", "fish")
SKY_KINDS = ("sun", "moon", "cloud", "balloon")
KINDS = GROUND_KINDS + SKY_KINDS
COLOURS = {
    "red": (220, 40, 40),
    "yellow": (250, 222, 50),
    "green": (40, 160, 60),
    "blue": (45, 90, 220),
    "purple": (150, 60, 190),
    "white": (248, 248, 248),
}
SIZES = ("small", "large")
COLUMNS = ("left", "centre", "right")
LEVELS = ("terse", "medium", "detailed")

COLUMN_X = {"left": 13, "centre": 32, "right": 51}
SCALE = {"small": 0.72, "large": 1.2}
GROUND_Y, SKY_Y = 57, 15  # base of a ground thing, centre of a sky thing
VALIDATION_SHARE = 8  # one scene in eight belongs to the validation split


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `None` in a caption's facts means that the caption does not say."""

    kind: str
    colour: str | None
    size: str | None
    column: str | None

    @property
    def in_sky(self) -> bool:
        return self.kind in SKY_KINDS


@dataclass(frozen=True)
class Scene:
    """What an image shows, or (with `None` for what is left open) what a caption states."""

    background: str | None
    things: tuple[Thing, ...]

    @property
    def split(self) -> str:
        """`train` or `val`, by a stable hash: no scene is ever in both."""
        text = json.dumps([self.background, sorted(map(str, self.things))])
        return "val" if hashlib.sha256(text.encode()).digest()[0] % VALIDATION_SHARE == 0 else "train"

    def to_json(self) -> dict:
        return {"background": self.background, "things": [asdict(thing) for thing in self.things]}

    @classmethod
    def from_json(cls, facts: dict) -> "Scene":
        return cls(facts["background"], tuple(Thing(**thing) for thing in facts["things"]))


def sample_scene(rng: random.Random, split: str | None = None) -> Scene:
    """A random scene (of one split, if named). Two things on the same level stand left and right, so none overlap."""
    while True:
        if rng.random() < 0.4:
            slots = [(rng.random() < 0.4, rng.choice(COLUMNS))]
        elif rng.random() < 0.7:
            slots = [(False, rng.choice(COLUMNS)), (True, rng.choice(COLUMNS))]
        else:
            sky = rng.random() < 0.3
            slots = [(sky, "left"), (sky, "right")]
        things = tuple(
            Thing(rng.choice(SKY_KINDS if sky else GROUND_KINDS), rng.choice(list(COLOURS)), rng.choice(SIZES), column)
            for sky, column in slots
        )
        scene = Scene(rng.choice(BACKGROUNDS), things)
        if split in (None, scene.split):
            return scene
