"""Captions with one stated fact changed are false of their image, and differ in nothing else."""

import random
import re
from dataclasses import astuple

import pytest

from t2i_feedback.datasets.alterations import ATTRIBUTES, WORDS, Attribute, alter, contradicts
from t2i_feedback.datasets.postcards.captions import PLACES, caption
from t2i_feedback.datasets.postcards.world import LEVELS, Scene, Thing, sample_scene

RED_HOUSE = Thing("house", "red", None, None)
HOUSE = Thing("house", None, None, None)


def altered_captions(attribute: Attribute, count: int = 300):
    """(image's scene, caption, its facts, altered caption, its facts) of random scenes, where there is an altered."""
    rng = random.Random(7)
    for _ in range(count):
        shown = sample_scene(rng)
        text, facts = caption(shown, rng, rng.choice(LEVELS))
        altered = alter(text, facts, attribute, shown, rng)
        if altered:
            yield shown, text, facts, *altered


def differing(a: Scene, b: Scene) -> list[str]:
    """The attributes in which two captions' facts differ, named once for each thing."""
    found = [
        name
        for one, other in zip(a.things, b.things, strict=True)
        for name, x, y in zip(WORDS, astuple(one), astuple(other), strict=True)
        if x != y
    ]
    return found + ["background"] * (a.background != b.background)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_altered_caption_is_false_of_its_image_in_one_fact(attribute: Attribute) -> None:
    found = list(altered_captions(attribute))
    assert len(found) > 50
    for shown, _, facts, _, changed in found:
        assert differing(facts, changed) == [attribute]
        assert contradicts(changed, shown)
        assert not contradicts(facts, shown)


@pytest.mark.parametrize("attribute", [name for name in ATTRIBUTES if name != "background"])
def test_the_words_of_one_fact_change_and_no_others(attribute: Attribute) -> None:
    for _, text, facts, altered, changed in altered_captions(attribute):
        [(old, new)] = [
            (getattr(a, attribute), getattr(b, attribute))
            for a, b in zip(facts.things, changed.things, strict=True)
            if a != b
        ]
        undone = {
            altered[: found.start()] + was + altered[found.end() :]
            for said in WORDS[attribute][new]
            for found in re.finditer(said, altered)
            for was in WORDS[attribute][old]
        }
        assert text in undone
        assert altered != text


def test_of_a_place_its_phrase_and_its_remark_change() -> None:
    for _, text, facts, altered, changed in altered_captions("background"):
        wheres, nouns, remark = PLACES[changed.background or ""]
        assert any(phrase in altered for phrase in (*wheres, *nouns))
        assert (PLACES[facts.background or ""][2] in text) == (remark in altered)


def test_an_altered_kind_stands_where_the_old_one_did() -> None:
    for _, _, facts, _, changed in altered_captions("kind"):
        assert [thing.in_sky for thing in facts.things] == [thing.in_sky for thing in changed.things]


@pytest.mark.parametrize(
    ("text", "facts", "attribute"),
    [
        ("a red house", Scene(None, (RED_HOUSE,)), "size"),  # not stated
        ("a red house", Scene(None, (RED_HOUSE,)), "background"),
        ("a red house and a red sun", Scene(None, (RED_HOUSE, Thing("sun", "red", None, None))), "colour"),  # whose?
        ("a green house in a green meadow", Scene("meadow", (Thing("house", "green", None, None),)), "colour"),
        ("a house", Scene(None, (RED_HOUSE,)), "colour"),  # the facts say more than the words
    ],
)
def test_what_cannot_be_altered_for_certain_is_left(text: str, facts: Scene, attribute: Attribute) -> None:
    assert alter(text, facts, attribute, facts, random.Random(0)) is None


def test_a_change_that_may_be_true_of_another_thing_is_left() -> None:
    facts = Scene(None, (Thing("house", None, None, "left"), HOUSE))
    text = "a house on the left and a cottage"
    shown = Scene(None, (Thing("house", None, None, "left"), Thing("house", None, None, "right")))
    found = {alter(text, facts, "column", shown, random.Random(seed)) for seed in range(20)}
    assert {altered[0] for altered in found if altered} == {
        "a house in the centre and a cottage",
        "a house in the middle and a cottage",
    }


def test_kinds_and_colours_of_other_worlds_are_altered_too() -> None:
    facts = Scene(None, (Thing("dog", "brown", None, None),))
    text, changed = alter("A brown dog", facts, "colour", facts, random.Random(0)) or ("", None)
    assert text == f"A {changed.things[0].colour} dog"
    text, changed = alter("A brown Dog", facts, "kind", facts, random.Random(0)) or ("", None)
    assert text.startswith("A brown ") and "og" not in text


@pytest.mark.parametrize(
    ("said", "shown", "false"),
    [
        (Scene("beach", (HOUSE,)), Scene("snow", (HOUSE,)), True),
        (Scene(None, (HOUSE,)), Scene("snow", (RED_HOUSE,)), False),
        (Scene(None, (RED_HOUSE,)), Scene(None, (HOUSE,)), False),  # nobody says which colour it has
        (Scene(None, (RED_HOUSE, HOUSE)), Scene(None, (RED_HOUSE,)), True),  # one house cannot be two
        (Scene(None, (HOUSE,)), Scene(None, (Thing("sun", None, None, None), RED_HOUSE)), False),
        (Scene(None, (HOUSE, RED_HOUSE)), Scene(None, (RED_HOUSE, HOUSE)), False),  # order says nothing
    ],
)
def test_a_caption_contradicts_a_image_only_for_certain(said: Scene, shown: Scene, false: bool) -> None:
    assert contradicts(said, shown) is false
