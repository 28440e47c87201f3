"""The questions that the tiny MLLMs learn from: truths are true, lies are lies, and nothing asked for is lost."""

import random
from dataclasses import replace

import pytest
from mllm_grammar import complaints, is_true, marks, parse, repair
from mllm_questions import (
    ATTRIBUTES,
    PAPER_PREFERENCE,
    all_facts,
    enhance_question,
    false_caption,
    falsify,
    first_facts,
    list_items,
    list_question,
    part_question,
    picture_questions,
    preference,
    preference_level,
)

from t2i_feedback.datasets.postcards.captions import PLACES, caption
from t2i_feedback.datasets.postcards.world import LEVELS, Scene, Thing, sample_scene

HOUSE = Thing("house", "red", "small", "left")
SUN = Thing("sun", "yellow", "large", "right")


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


@pytest.mark.parametrize("level", LEVELS)
def test_every_caption_is_parsed_to_the_facts_it_states(rng: random.Random, level: str) -> None:
    for _ in range(300):
        scene = sample_scene(rng)
        text, facts = caption(scene, rng, level)
        assert parse(text) == (facts, [])
        assert is_true(facts, scene)
        assert all(fits for _, fits in marks(text, scene))
        assert complaints(facts, scene) == ["nothing"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_negative_is_never_true_and_has_a_fitting_complaint(rng: random.Random, level: str) -> None:
    for _ in range(300):
        scene = sample_scene(rng)
        text, facts, attribute = false_caption(scene, rng, level)
        assert not is_true(facts, scene)
        assert complaints(facts, scene)[0] != "nothing"
        parsed = parse(text)
        assert parsed is not None
        assert parsed[0] == facts
        if attribute == "background":
            assert not all(fits for _, fits in marks(text, scene))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_falsify_changes_one_thing(rng: random.Random, attribute: str) -> None:
    for _ in range(100):
        scene = sample_scene(rng)
        false = falsify(scene, attribute, rng)
        if false is not None:
            same = [a == b for a, b in zip(scene.things, false.things, strict=False)]
            changes = (scene.background != false.background) + same.count(False)
            assert changes + abs(len(scene.things) - len(false.things)) >= 1
            assert attribute in ("uninvited", "missing") or changes == 1


@pytest.mark.parametrize(
    ("shown", "complaint", "remark"),
    [
        (Scene("meadow", (replace(HOUSE, colour="blue"), SUN)), "the house is blue", "the house is red"),
        (Scene("meadow", (replace(HOUSE, size="large"), SUN)), "the house is large", "the house is small"),
        (
            Scene("meadow", (replace(HOUSE, column="right"), SUN)),
            "the house is on the right",
            "the house is on the left",
        ),
        (Scene("beach", (HOUSE, SUN)), "it is a beach", "it is a meadow"),
        (Scene("meadow", (SUN,)), "there is no house", "there is a house"),
        (
            Scene("meadow", (HOUSE, SUN, Thing("tree", "green", "small", "right"))),
            "there is an extra tree",
            "nothing else",
        ),
        (
            Scene("meadow", (HOUSE, SUN, Thing("unclear", None, None, "right"))),
            "there is an extra thing",
            "nothing else",
        ),
    ],
)
def test_complaints_and_their_repair(shown: Scene, complaint: str, remark: str) -> None:
    wanted = Scene("meadow", (HOUSE, SUN))
    assert complaints(wanted, shown) == [complaint]
    assert repair(complaint, wanted) == remark


def test_equal_things_need_a_counterpart_each() -> None:
    house = Thing("house", "red", None, None)
    assert not is_true(Scene(None, (house, house)), Scene("meadow", (HOUSE,)))
    assert is_true(Scene(None, (house, house)), Scene("meadow", (HOUSE, replace(HOUSE, column="right"))))


def test_enhancement_keeps_every_attribute_and_answers_feedback(rng: random.Random) -> None:
    for _ in range(500):
        question = enhance_question(rng)
        body, _, feedback = question.text.partition("\nLast time: ")
        prompt = body.split(": ", 1)[1].rstrip(".")
        asked, answer = parse(prompt[0].lower() + prompt[1:]), parse(question.answer)
        assert asked is not None
        assert answer is not None
        assert is_true(asked[0], answer[0])
        assert answer[0].background == asked[0].background
        assert all(t.colour and t.size for t in answer[0].things)
        assert bool(feedback) == bool(answer[1])
        if feedback:
            assert repair(feedback, answer[0]) in answer[1]
            assert all(t.column for t in answer[0].things)
        else:
            assert len(answer[0].things) == 1 or answer[0].things[0].column


def test_enhancement_names_no_place_that_nobody_asked_for(rng: random.Random) -> None:
    scene = Scene("beach", (HOUSE, SUN))
    for place in (None, "beach"):
        prompt = Scene(place, (Thing("house", None, None, None), Thing("sun", None, None, None)))
        assert all_facts(scene, prompt, rng).background == place


def test_where_the_size_is_open_most_things_are_large(rng: random.Random) -> None:
    scene = Scene("beach", (HOUSE,))
    open_size = Scene(None, (Thing("house", None, None, None),))
    sizes = [all_facts(scene, open_size, rng).things[0].size for _ in range(400)]
    assert HOUSE.size == "small"
    assert 150 < sizes.count("large") < 250  # half of the small ones, so three of four of all
    asked_small = Scene(None, (Thing("house", None, "small", None),))
    assert {all_facts(scene, asked_small, rng).things[0].size for _ in range(20)} == {"small"}


def test_the_first_enhancement_leaves_something_for_feedback_to_repair() -> None:
    everything = Scene(None, (HOUSE, SUN))
    prompt = Scene(None, (Thing("house", None, None, None), Thing("sun", None, None, None)))
    assert first_facts(everything, prompt) == Scene(None, (HOUSE, replace(SUN, column=None)))


def test_an_enhancement_keeps_what_the_prompt_states_and_its_order(rng: random.Random) -> None:
    scene = Scene("beach", (HOUSE, replace(SUN, size="large")))
    prompt = Scene(None, (Thing("sun", "yellow", None, None), Thing("house", None, "small", "left")))
    everything = all_facts(scene, prompt, rng)
    assert [thing.kind for thing in everything.things] == ["sun", "house"]
    assert first_facts(everything, prompt).things == everything.things


def test_a_list_names_exactly_what_its_caption_states(rng: random.Random) -> None:
    for _ in range(300):
        question = list_question(rng)
        told = parse(question.text.removeprefix("List what a picture of ").removesuffix(" must show."))
        assert told is not None
        assert question.answer.split("; ") == list_items(told[0])


def test_items_are_there_in_the_words_of_the_world() -> None:
    scene = Scene("beach", (Thing("house", "red", None, "left"), Thing("sun", None, "large", None)))
    assert list_items(scene) == ["a red house on the left", "a large sun", "a beach"]


def test_a_question_about_a_part_is_answered_by_the_scene(rng: random.Random) -> None:
    answers = set()
    for _ in range(400):
        scene = sample_scene(rng)
        question = part_question(scene, rng)
        told = parse(f"a meadow: {question.text.removeprefix('Is there ').removesuffix('?')}")
        if told is None:  # a place
            assert (question.answer == "yes") == any(
                question.text == f"Is there {noun}?" for noun in PLACES[scene.background or ""][1]
            )
        else:
            assert (question.answer == "yes") == any(
                is_true(Scene(None, told[0].things), Scene(None, (thing,))) for thing in scene.things
            )
        answers.add(question.answer)
    assert answers == {"yes", "no"}


def test_questions_about_a_drawn_picture_with_something_unclear_are_never_answered_yes(rng: random.Random) -> None:
    for _ in range(100):
        scene = sample_scene(rng)
        shown = replace(scene, things=(*scene.things, Thing("unclear", None, None, "centre")))
        for question in picture_questions(shown, (0.5, 0.5, 0.5), rng, 0.0, caption(scene, rng, "terse")):
            assert "unclear" not in question.text + question.answer
            assert not question.text.startswith("Does this picture show") or question.answer == "no"


def test_preferences(rng: random.Random) -> None:
    found = dict(preference(rng) for _ in range(3000))
    assert found[PAPER_PREFERENCE] == (1, 1, 1)
    assert found["dark images"] == (1, 0, 0)
    assert found["sharp details"] == (0, 0, -1)
    assert preference_level((1.0, 0.5, 0.0), (1, 1, 1)) == pytest.approx(0.5)
    assert preference_level((1.0, 0.5, 0.2), (0, 0, -1)) == pytest.approx(0.8)
