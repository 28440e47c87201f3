"""Scenes as sentences: captions as a human might write them, and the facts that each of them states."""

import hashlib
import random

from t2i_feedback.datasets.postcards.world import KINDS, LEVELS, Scene, Thing

PLACES = {
    "meadow": (
        ("in a meadow", "on a green meadow", "in a grassy field"),
        ("a meadow", "a green meadow"),
        "under a blue sky",
    ),
    "beach": (("on a beach", "at the beach", "on a sandy beach"), ("a beach", "a sandy beach"), "by the sea"),
    "snow": (
        ("in the snow", "on a snowy field", "in a snowy landscape"),
        ("a snowy landscape", "a snowy field"),
        "in winter",
    ),
    "desert": (("in the desert", "in a sandy desert"), ("a desert", "a sandy desert"), "under a pale sky"),
    "city": (
        ("in the city at night", "on a city street at night"),
        ("a city at night", "a night city"),
        "under a dark sky",
    ),
    "sunset": (("at sunset", "on a hill at sunset"), ("a sunset", "hills at sunset"), "under a pink sky"),
    "lake": (("on a lake", "at the lake", "by a blue lake"), ("a lake", "a blue lake"), "on a clear day"),
}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
COLUMN_WORDS = {
    "left": ("on the left", "on the left side", "to the left"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "on the right side", "to the right"),
}
KIND_WORDS = {kind: (kind,) for kind in KINDS} | {
    "house": ("house", "house", "cottage"),
    "boat": ("boat", "boat", "sailboat"),
    "balloon": ("balloon", "balloon", "hot air balloon"),
}


TUNING_SHARE = 16  # one caption in so many


def is_for_tuning(text: str) -> bool:
    """Whether a caption is one of those that settings are chosen on (`benchmarks/objectives.py`), by a stable hash: no
    data set has it."""
    return hashlib.sha256(text.encode()).digest()[0] % TUNING_SHARE == 0


def describe_thing(thing: Thing, rng: random.Random, article: bool = True) -> str:
    """Such as "a small red house on the left", with the words for whatever the thing leaves as `None` left out."""
    words = [rng.choice(SIZE_WORDS[thing.size])] if thing.size else []
    words += [thing.colour] if thing.colour else []
    words += [rng.choice(KIND_WORDS[thing.kind])]
    text = " ".join(words)
    if article:
        text = ("an " if text[0] in "aeiou" else "a ") + text
    return f"{text} {rng.choice(COLUMN_WORDS[thing.column])}" if thing.column else text


def caption(scene: Scene, rng: random.Random, level: str) -> tuple[str, Scene]:
    """A human-like caption of the scene and the facts that it states. Every thing is named at every level.

    `terse` is what a user types ("a red house and a yellow sun"); `medium` adds the place and some sizes and columns;
    `detailed` states everything.
    """
    shown = list(scene.things)
    rng.shuffle(shown)
    wheres, nouns, extra = PLACES[scene.background or ""]

    def keep(thing: Thing, colour: float, size: float, column: float) -> Thing:
        return Thing(
            thing.kind,
            thing.colour if rng.random() < colour else None,
            thing.size if rng.random() < size else None,
            thing.column if rng.random() < column else None,
        )

    if level == "terse":
        stated = [keep(thing, 0.9, 0, 0) for thing in shown]
        article = rng.random() < 0.75
        text = rng.choice((" and ", " and ", " with ")).join(describe_thing(thing, rng, article) for thing in stated)
        if place := rng.random() < 0.25:
            text += f" {rng.choice(wheres)}"
        return text, Scene(scene.background if place else None, tuple(stated))
    if level == "medium":
        stated = [keep(thing, 1, 0.4, 0.4) for thing in shown]
    elif level == "detailed":
        stated = shown
    else:
        raise ValueError(f"no caption level is called {level!r}; there are {', '.join(LEVELS)}")
    body = " and ".join(describe_thing(thing, rng) for thing in stated)
    if level == "medium":
        text = rng.choice((f"{body} {rng.choice(wheres)}", f"{rng.choice(nouns)} with {body}"))
    else:
        more = f" {extra}" if rng.random() < 0.5 else ""
        noun = f"{rng.choice(nouns)}{more}"
        text = rng.choice(
            (
                f"{noun}: {body}",
                f"{noun} with {body}",
                f"{body}, {rng.choice(wheres)}{more}",
                f"a postcard of {noun} with {body}",
            )
        )
    return text, Scene(scene.background, tuple(stated))


def remarks(scene: Scene) -> list[str]:
    """Short true sentences that stress one fact each; behind a caption they repeat what an image must not miss."""
    sentences = [f"there is a {thing.kind}" for thing in scene.things]
    sentences += [f"the {thing.kind} is {thing.colour}" for thing in scene.things if thing.colour]
    sentences += [f"the {thing.kind} is {thing.size}" for thing in scene.things if thing.size]
    sentences += [f"the {thing.kind} is {COLUMN_WORDS[thing.column][0]}" for thing in scene.things if thing.column]
    sentences += [f"it is {PLACES[scene.background][1][0]}"] if scene.background else []
    return [*sentences, "nothing else"]
