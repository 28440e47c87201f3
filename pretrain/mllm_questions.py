"""What the tiny MLLMs are asked and what they should answer, in the words of the product's roles.

Answers are made from the facts of a scene, never from a picture, except for preferences, whose truth is measured.
"""

import random
from dataclasses import dataclass, replace
from itertools import permutations

from mllm_grammar import complaints, fits, is_true, marks, repair

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, PLACES, SIZE_WORDS, caption, describe_thing, remarks
from t2i_feedback.datasets.postcards.world import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    GROUND_KINDS,
    KINDS,
    LEVELS,
    SIZES,
    SKY_KINDS,
    Scene,
    Thing,
    sample_scene,
)

PAPER_PREFERENCE = (
    "images that have a dark, subdued color palette with a blurred appearance, "
    "creating a somber and introspective atmosphere"
)
VALIDATE = "Does this picture show {}?"
FEEDBACK = "What is wrong with this picture of {}?"
JUDGE = "Rate this picture from 1 to 10 for {}."
ENHANCE = "Describe in detail: {}"
ENHANCE_AGAIN = "Describe in detail: {}\nLast time: {}"
DESCRIBE = "Describe this picture."
PARAPHRASES = {
    VALIDATE: ("Is this a picture of {}?", "Does this image match the caption: {}?"),
    FEEDBACK: ("What is wrong? The picture should show {}.", "What should change to show {}?"),
    JUDGE: ("On a scale from 1 to 10, how well does this picture fit: {}?", "Score this image from 1 to 10: {}."),
    ENHANCE: ("Make this prompt more detailed: {}", "Rewrite in detail: {}"),
    DESCRIBE: ("What does this picture show?", "Describe this image in detail."),
}
PARAPHRASED = 0.2  # share of the questions that are put in other words
LIST = "List what a picture of {} must show."
IS_THERE = "Is there {}?"  # asked of every item of that list: question-wise validation
HOW_MANY = "How many things are there?"

# What can be made false, and the caption levels that can tell it.
ATTRIBUTES = {
    "kind": LEVELS,
    "colour": LEVELS,
    "size": ("medium", "detailed"),
    "column": ("medium", "detailed"),
    "background": LEVELS,
    "uninvited": LEVELS,  # the picture shows a thing that the caption does not name
    "missing": LEVELS,  # the caption names a thing that the picture does not show
}
# How often each is made false: columns are the last that a model learns, and only longer captions tell them.
OFTEN = {"kind": 1.5, "column": 4.0}

# Words for more (+) and less (-) of each trait of mllm_style.TRAITS.
TRAIT_WORDS = {
    "dark": (
        ("dark", "dim", "gloomy"),
        ("a dark palette", "dark tones", "dim light", "low brightness"),
        ("bright", "luminous"),
        ("a bright palette", "bright light", "light tones"),
    ),
    "muted": (
        ("muted", "subdued", "pale"),
        ("muted colours", "a subdued color palette", "a subdued palette", "low contrast"),
        ("vivid", "colourful"),
        ("vivid colours", "a colourful palette", "saturated colors", "strong contrast"),
    ),
    "blurred": (
        ("blurred", "soft", "hazy"),
        ("a blurred appearance", "soft focus", "a soft, blurred look"),
        ("sharp", "crisp"),
        ("sharp details", "a crisp appearance", "a sharp focus"),
    ),
}
ATMOSPHERES = ("", "", "", ", creating a somber and introspective atmosphere", ", creating a quiet atmosphere")


@dataclass(frozen=True)
class Question:
    """A question, its answer, and marks: (end of a phrase in the question, whether the picture bears it out)."""

    text: str
    answer: str
    marks: tuple[tuple[int, bool], ...] = ()


def phrase(template: str, rng: random.Random, *values: str) -> str:
    """A role's words, or now and then other words for the same."""
    others = PARAPHRASES.get(template)
    if others and rng.random() < PARAPHRASED:
        template = rng.choice(others)
    return template.format(*values)


def _another(values, value, rng: random.Random):
    return rng.choice([other for other in values if other != value])


def falsify(shown: Scene, attribute: str, rng: random.Random) -> Scene | None:
    """The scene with one thing about it changed; None where that cannot be."""
    things = list(shown.things)
    if attribute == "background":
        return replace(shown, background=_another(BACKGROUNDS, shown.background, rng))
    if attribute == "uninvited":
        if len(things) < 2:
            return None
        things.pop(rng.randrange(len(things)))
        return Scene(shown.background, tuple(things))
    if attribute == "missing":
        if len(things) > 1:
            return None
        column = _another(COLUMNS, things[0].column, rng)
        added = Thing(rng.choice(KINDS), rng.choice(list(COLOURS)), rng.choice(SIZES), column)
        return Scene(shown.background, (*things, added))
    index = rng.randrange(len(things))
    old = things[index]
    values = {"colour": tuple(COLOURS), "size": SIZES, "column": COLUMNS}
    if attribute == "kind":
        same_level = SKY_KINDS if old.in_sky else GROUND_KINDS
        values["kind"] = same_level if rng.random() < 0.7 else KINDS
    things[index] = replace(old, **{attribute: _another(values[attribute], getattr(old, attribute), rng)})
    return Scene(shown.background, tuple(things))


def false_caption(shown: Scene, rng: random.Random, level: str) -> tuple[str, Scene, str]:
    """A caption of that level that is wrong about one thing, its facts, and which attribute it is wrong about."""
    while True:
        names = [name for name, levels in ATTRIBUTES.items() if level in levels]
        attribute = rng.choices(names, [OFTEN.get(name, 1.0) for name in names])[0]
        false = falsify(shown, attribute, rng)
        if false is not None:
            text, facts = caption(false, rng, level)
            if not is_true(facts, shown):
                return text, facts, attribute


def clear_part(shown: Scene) -> Scene:
    """The scene without what a labeller of drawn pictures could not name."""
    return replace(shown, things=tuple(thing for thing in shown.things if thing.kind in KINDS))


def _any_caption(shown: Scene, rng: random.Random) -> tuple[str, Scene]:
    """A caption, true or false with equal chances; now and then it begins with a capital letter."""
    level = rng.choices(LEVELS, (0.4, 0.25, 0.35))[0]
    clear = clear_part(shown)
    text, facts = caption(clear, rng, level) if rng.random() < 0.5 else false_caption(clear, rng, level)[:2]
    return (text[0].upper() + text[1:] if rng.random() < 0.05 else text), facts


def validate_question(shown: Scene, asked: tuple[str, Scene], rng: random.Random) -> Question:
    """Does the picture show the caption that was asked for? Strict: every stated fact, and nothing uninvited."""
    text, facts = asked
    question = phrase(VALIDATE, rng, text)
    start = question.index(text)
    marked = tuple((start + end, fits) for end, fits in marks(text, shown))
    return Question(question, "yes" if is_true(facts, shown) else "no", marked)


def part_question(shown: Scene, rng: random.Random) -> Question:
    """Is there this thing (or this place), whatever else there is? Half of them are true."""
    scene = clear_part(shown)
    if rng.random() < 0.15:
        true = rng.random() < 0.5
        place = shown.background if true else _another(BACKGROUNDS, shown.background, rng)
        return Question(IS_THERE.format(rng.choice(PLACES[place][1])), "yes" if true else "no")
    if rng.random() < 0.5:
        scene = falsify(scene, rng.choice(("kind", "colour", "size", "column", "column")), rng) or scene
    thing = rng.choice(scene.things)
    thing = Thing(
        thing.kind,
        thing.colour if rng.random() < 0.7 else None,
        thing.size if rng.random() < 0.5 else None,
        thing.column if rng.random() < 0.65 else None,
    )
    text = describe_thing(thing, rng)
    question = IS_THERE.format(text)
    marked = tuple((question.index(text) + end, fits) for end, fits in marks(text, shown))
    return Question(question, "yes" if marked[-1][1] else "no", marked)


def feedback_question(shown: Scene, asked: tuple[str, Scene], rng: random.Random) -> Question:
    """What is wrong? One short complaint, the gravest, or `nothing`."""
    text, facts = asked
    question = phrase(FEEDBACK, rng, text)
    marked = tuple((question.index(text) + end, fits) for end, fits in marks(text, shown))
    return Question(question, complaints(facts, shown)[0], marked)


def preference(rng: random.Random) -> tuple[str, tuple[int, ...]]:
    """A preference and how it weighs the traits dark, muted and blurred: +1 wanted, -1 unwanted, 0 not named."""
    if rng.random() < 0.35:
        return PAPER_PREFERENCE, (1, 1, 1)
    count = rng.choices((1, 2, 3), (0.7, 0.15, 0.15))[0]
    signs = {name: rng.choice((1, -1)) for name in rng.sample(list(TRAIT_WORDS), count)}
    if count == 1:
        name, sign = next(iter(signs.items()))
        adjectives, phrases = TRAIT_WORDS[name][:2] if sign > 0 else TRAIT_WORDS[name][2:]
        text = rng.choice(
            (f"{rng.choice(adjectives)} images", f"images that are {rng.choice(adjectives)}", rng.choice(phrases))
        )
    else:
        named = [rng.choice(TRAIT_WORDS[name][1 if sign > 0 else 3]) for name, sign in signs.items()]
        last = f"{rng.choice(('and', 'with'))} {named[-1]}{rng.choice(ATMOSPHERES)}"
        text = f"images that have {', '.join(named[:-1])} {last}"
    return text, tuple(signs.get(name, 0) for name in TRAIT_WORDS)


def preference_level(levels: tuple[float, ...], signs: tuple[int, ...]) -> float:
    """How far a picture with these trait levels (0..1) meets a preference: the mean over the traits it names, 0..1."""
    met = [level if sign > 0 else 1 - level for level, sign in zip(levels, signs, strict=True) if sign]
    return sum(met) / len(met)


def judge_question(levels: tuple[float, ...], rng: random.Random) -> Question:
    """Rate for a preference; the answer is rounded up or down at random, so that expected scores stay exact."""
    text, signs = preference(rng)
    score = 1 + 9 * preference_level(levels, signs)
    return Question(phrase(JUDGE, rng, text), str(min(10, int(score + rng.random()))))


def describe_question(shown: Scene, rng: random.Random) -> Question:
    """A detailed caption of the picture."""
    return Question(phrase(DESCRIBE, rng), caption(shown, rng, "detailed")[0])


def picture_questions(
    shown: Scene,
    levels: tuple[float, ...],
    rng: random.Random,
    easy: float,
    asked: tuple[str, Scene] | None = None,
) -> list[Question]:
    """A dozen questions about one picture; `easy` is the share of whole-caption questions replaced by easier ones.

    `asked` is the caption that a drawn picture was meant to show, with its facts.
    """
    clear = clear_part(shown)
    questions = [judge_question(levels, rng) for _ in range(4)]
    if asked:
        questions += [validate_question(shown, asked, rng), feedback_question(shown, asked, rng)]
    if not clear.things:
        return questions
    for _ in range(6 if asked else 7):
        easier = rng.random() < easy
        questions.append(
            part_question(shown, rng) if easier else validate_question(shown, _any_caption(shown, rng), rng)
        )
    questions += [feedback_question(shown, _any_caption(shown, rng), rng) for _ in range(1 if asked else 2)]
    if clear == shown and rng.random() < 0.7:
        return [*questions, describe_question(shown, rng)]
    return [*questions, Question(HOW_MANY, str(len(shown.things)))]


def item(thing: Thing) -> str:
    """What a caption says of a thing, always in the same words."""
    words = [SIZE_WORDS[thing.size][0]] if thing.size else []
    words += [thing.colour] if thing.colour else []
    text = " ".join([*words, thing.kind])
    place = f" {COLUMN_WORDS[thing.column][0]}" if thing.column else ""
    return ("an " if text[0] in "aeiou" else "a ") + text + place


def list_items(facts: Scene) -> list[str]:
    """Everything that a caption states, an item for each thing and one for the place."""
    return [item(thing) for thing in facts.things] + ([PLACES[facts.background][1][0]] if facts.background else [])


def list_question(rng: random.Random) -> Question:
    """Text only: the items of a caption, to be asked about one by one."""
    text, facts = caption(sample_scene(rng, "train"), rng, rng.choice(LEVELS))
    return Question(LIST.format(text), "; ".join(list_items(facts)))


def _same_order(facts: Scene, prompt: Scene) -> bool:
    return all(
        thing.kind == asked.kind and asked.colour in (None, thing.colour) and asked.column in (None, thing.column)
        for thing, asked in zip(facts.things, prompt.things, strict=True)
    )


def _in_order(scene: Scene, prompt: Scene) -> tuple[Thing, ...]:
    """The scene's things in the order in which a prompt about them names them."""
    return next(
        order
        for order in permutations(scene.things)
        if all(fits(vars(asked), thing) for thing, asked in zip(order, prompt.things, strict=True))
    )


def all_facts(scene: Scene, prompt: Scene, rng: random.Random) -> Scene:
    """All that a picture of the prompt may state of its things, in the prompt's order; of the place, what it asks for.

    A place that nobody asked for is left to the image model: an enhancer that names one says the same one of most
    prompts, and all pictures come out alike. Where the size is open, three things of four are large, since the image
    model draws large things more reliably.
    """
    things = [
        replace(thing, size="large") if asked.size is None and rng.random() < 0.5 else thing
        for thing, asked in zip(_in_order(scene, prompt), prompt.things, strict=True)
    ]
    return Scene(prompt.background, tuple(things))


def first_facts(everything: Scene, prompt: Scene) -> Scene:
    """What the first enhancement of a prompt states: colours, sizes, and where the first of two things stands.

    The rest is left to the image model, and stated in answer to feedback: a loop whose first prompt says everything
    would have nothing to repair.
    """
    things = [
        replace(thing, column=asked.column) for thing, asked in zip(everything.things, prompt.things, strict=True)
    ]
    if len(things) > 1:
        things[0] = everything.things[0]
    return Scene(everything.background, tuple(things))


def write_enhanced(facts: Scene, rng: random.Random) -> str:
    """The things, on a postcard of the place if there is one, and nothing said that `facts` leaves open."""
    body = " and ".join(describe_thing(thing, rng) for thing in facts.things)
    if facts.background is None:
        return body
    _, nouns, extra = PLACES[facts.background]
    return f"a postcard of {rng.choice(nouns)} {extra} with {body}"


def enhance_question(rng: random.Random) -> Question:
    """Text only: a short prompt to a longer one with the same things and every stated attribute.

    Half of them come with last time's complaint: the answer states everything, with a remark or two behind it.
    """
    scene = sample_scene(rng, "train")
    prompt, facts = caption(scene, rng, rng.choices(LEVELS, (0.3, 0.4, 0.3))[0])
    written = prompt[0].upper() + prompt[1:] if rng.random() < 0.1 else prompt
    written += "." if rng.random() < 0.1 else ""
    everything = all_facts(scene, facts, rng)
    if rng.random() < 0.5:
        return Question(phrase(ENHANCE, rng, written), write_enhanced(first_facts(everything, facts), rng))
    attributes = [name for name in ATTRIBUTES if name != "background" or everything.background]
    false = falsify(everything, rng.choice(attributes), rng) or everything
    complaint = complaints(everything, false)[0]
    said = [repair(complaint, everything)]
    if rng.random() < 0.3:
        said.append(_another(remarks(everything), said[0], rng))
    return Question(ENHANCE_AGAIN.format(written, complaint), ", ".join([write_enhanced(everything, rng), *said]))


def text_question(rng: random.Random) -> Question:
    """A request without a picture: to enhance a prompt, now and then to list what it states."""
    return list_question(rng) if rng.random() < 0.2 else enhance_question(rng)
