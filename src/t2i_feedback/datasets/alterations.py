"""Captions with one stated fact changed, word for word, and whether a caption is certainly false of an image.

Facts count as complete: the things that they name are all that the image shows (as in `evaluation.alignment`).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Literal, TypeVar, get_args

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, KIND_WORDS, PLACES, SIZE_WORDS
from t2i_feedback.datasets.postcards.world import COLOURS, GROUND_KINDS, SKY_KINDS, Scene, Thing

Value = TypeVar("Value")
Attribute = Literal["kind", "colour", "size", "column", "background"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
WORDS: Mapping[str, Mapping[str, Sequence[str]]] = {  # of a thing: attribute -> value -> the ways to say it
    "kind": KIND_WORDS,
    "colour": {colour: (colour,) for colour in COLOURS},
    "size": SIZE_WORDS,
    "column": COLUMN_WORDS,
}


def alter(text: str, facts: Scene, attribute: Attribute, shown: Scene, rng: random.Random) -> tuple[str, Scene] | None:
    """The caption with one stated `attribute` changed, and what it states now: certainly false of `shown`.

    None where the caption does not state the attribute, where its words for it are not unique, or where every change
    might still be true.
    """
    if attribute == "background":
        return _other_place(text, facts, shown, rng)
    words = WORDS[attribute]
    for index in _shuffled(range(len(facts.things)), rng):
        thing = facts.things[index]
        stated = getattr(thing, attribute)
        spellings = _pattern(words.get(stated, (stated,))) if stated else None
        if spellings is None or len(spellings.findall(text)) != 1:
            continue
        for value in _shuffled(_others(attribute, stated), rng):
            things = list(facts.things)
            things[index] = replace(thing, **{attribute: value})
            changed = Scene(facts.background, tuple(things))
            if contradicts(changed, shown):
                return spellings.sub(rng.choice(words[value]), text), changed
    return None


def contradicts(said: Scene, shown: Scene) -> bool:
    """Whether `said` cannot be true of an image of which `shown` is true; what either leaves open fits anything."""
    if not _fits(said.background, shown.background):
        return True
    choices = permutations(shown.things, len(said.things))
    return not any(all(map(_same_thing, said.things, choice)) for choice in choices)


def _same_thing(said: Thing, shown: Thing) -> bool:
    return all(_fits(getattr(said, name), getattr(shown, name)) for name in WORDS)


def _fits(said: str | None, shown: str | None) -> bool:
    return None in (said, shown) or said == shown


def _others(attribute: str, value: str) -> list[str]:
    """Other values; of kinds, those that stand where this one does, so that the caption stays plausible."""
    level = next((kinds for kinds in (SKY_KINDS, GROUND_KINDS) if attribute == "kind" and value in kinds), None)
    return [other for other in level or WORDS[attribute] if other != value]


def _other_place(text: str, facts: Scene, shown: Scene, rng: random.Random) -> tuple[str, Scene] | None:
    """The caption with its place changed in the same kind of phrase, and the remark that goes with the place too."""
    old = facts.background
    if old not in PLACES:
        return None
    wheres, nouns, remark = PLACES[old]
    said = _pattern([*wheres, *nouns]).search(text)
    places = [place for place in PLACES if contradicts(replace(facts, background=place), shown)]
    if said is None or not places:
        return None
    new = rng.choice(places)
    phrases = PLACES[new][0 if said[0].lower() in wheres else 1]
    changed = text[: said.start()] + rng.choice(phrases) + text[said.end() :]
    return _pattern([remark]).sub(PLACES[new][2], changed), replace(facts, background=new)


def _shuffled(values: Sequence[Value], rng: random.Random) -> list[Value]:
    return rng.sample(values, len(values))


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Any of the phrases as whole words, the longest that fits."""
    longest_first = sorted(set(phrases), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
