"""What captions state and whether it is true: the truths behind every question that the MLLM learns from."""

import re
from collections.abc import Iterator
from itertools import permutations

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, KIND_WORDS, PLACES, SIZE_WORDS
from t2i_feedback.datasets.postcards.world import COLOURS, KINDS, Scene, Thing

BACKGROUND_OF = {
    phrase: background for background, (wheres, nouns, extra) in PLACES.items() for phrase in (*wheres, *nouns, extra)
}
SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
COLUMN_OF = {phrase: column for column, phrases in COLUMN_WORDS.items() for phrase in phrases}
KIND_OF = {word: kind for kind, words in KIND_WORDS.items() for word in words}


def _either(phrases) -> str:
    """A regular expression for one of the phrases, the longest first."""
    return "(?:" + "|".join(re.escape(phrase) for phrase in sorted(set(phrases), key=len, reverse=True)) + ")"


_SIZE, _COLOUR, _KIND, _COLUMN = _either(SIZE_OF), _either(COLOURS), _either(KIND_OF), _either(COLUMN_OF)
_NOUN = _either(noun for _, nouns, _ in PLACES.values() for noun in nouns)
_WHERE = _either(where for wheres, _, _ in PLACES.values() for where in wheres)
_EXTRA = _either(extra for _, _, extra in PLACES.values())
_THING = rf"(?:an? )?(?:{_SIZE} )?(?:{_COLOUR} )?{_KIND}(?: {_COLUMN})?"
_REMARK = (
    rf"there is an? {_either(KINDS)}|the {_either(KINDS)} is (?:{_COLOUR}|{_SIZE}|{_COLUMN})|it is {_NOUN}|nothing else"
)
_CAPTION = re.compile(
    rf"(?:(?:a postcard of )?{_NOUN}(?: {_EXTRA})?(?:: | with ))?{_THING}(?: (?:and|with) {_THING})?"
    rf"(?:,? {_WHERE}(?: {_EXTRA})?)?(?P<remarks>(?:, (?:{_REMARK}))*)"
)
_WORDS = re.compile(
    rf"\b(?:(?P<background>{_either(BACKGROUND_OF)})|(?P<size>{_SIZE})|(?P<colour>{_COLOUR})|(?P<kind>{_KIND})"
    rf"|(?P<column>{_COLUMN})|(?P<joint>and|with))\b"
)
_VALUE_OF = {"size": SIZE_OF, "colour": {colour: colour for colour in COLOURS}, "kind": KIND_OF, "column": COLUMN_OF}


def _walk(text: str) -> Iterator[tuple[int, str | None, dict]]:
    """After each telling word: where it ends, the background if it names one, and the thing described so far."""
    thing: dict[str, str] = {}
    for match in _WORDS.finditer(text):
        name, phrase = match.lastgroup or "", match.group()
        if name == "background":
            yield match.end(), BACKGROUND_OF[phrase], {}
        elif name == "joint" or ("kind" in thing and name != "column"):
            thing = {}
        if name in _VALUE_OF:
            thing[name] = _VALUE_OF[name][phrase]
            yield match.end(), None, thing


def parse(text: str) -> tuple[Scene, list[str]] | None:
    """The facts that a caption of the world's grammar states and its remarks; None if it is not in the grammar."""
    match = _CAPTION.fullmatch(text)
    if match is None:
        return None
    backgrounds, things = set(), []
    for _, background, thing in _walk(text[: match.start("remarks")]):
        if background:
            backgrounds.add(background)
        elif not any(thing is known for known in things):
            things.append(thing)
    if len(backgrounds) > 1:
        return None
    facts = tuple(Thing(t["kind"], t.get("colour"), t.get("size"), t.get("column")) for t in things)
    return Scene(next(iter(backgrounds), None), facts), [r for r in match["remarks"].split(", ") if r]


def fits(stated: dict, thing: Thing) -> bool:
    """Whether a thing is all that is stated of one; what is `None` is open."""
    return all(getattr(thing, name) == value for name, value in stated.items() if value is not None)


def is_true(facts: Scene, shown: Scene) -> bool:
    """Strict: every stated fact holds, every thing has its own counterpart, and nothing uninvited is shown."""
    if facts.background not in (None, shown.background) or len(facts.things) != len(shown.things):
        return False
    return any(
        all(fits(vars(stated), thing) for stated, thing in zip(facts.things, order, strict=True))
        for order in permutations(shown.things)
    )


def marks(text: str, shown: Scene) -> list[tuple[int, bool]]:
    """For each telling word of a caption: where it ends, and whether the phrase so far is true of the picture."""
    return [
        (end, background == shown.background if background else any(fits(thing, t) for t in shown.things))
        for end, background, thing in _walk(text.lower())
    ]


def complaints(facts: Scene, shown: Scene) -> list[str]:
    """What is wrong with a picture that should show `facts`, the gravest first; ["nothing"] if all is right."""
    if is_true(facts, shown):
        return ["nothing"]
    left = list(shown.things)
    pairs: list[tuple[Thing, Thing]] = []
    missing: list[Thing] = []
    for stated in facts.things:
        same = [thing for thing in left if thing.kind == stated.kind]
        if same:
            best = max(
                same, key=lambda t: sum(getattr(stated, n) == getattr(t, n) for n in ("colour", "size", "column"))
            )
            left.remove(best)
            pairs.append((stated, best))
        else:
            missing.append(stated)
    found = [f"there is no {stated.kind}" for stated in missing]
    found += [f"there is an extra {thing.kind if thing.kind in KINDS else 'thing'}" for thing in left]
    if facts.background not in (None, shown.background):
        found.append(f"it is {PLACES[shown.background or ''][1][0]}")
    found += [
        f"the {thing.kind} is {thing.colour}" for stated, thing in pairs if stated.colour not in (None, thing.colour)
    ]
    found += [f"the {thing.kind} is {thing.size}" for stated, thing in pairs if stated.size not in (None, thing.size)]
    found += [
        f"the {thing.kind} is {COLUMN_WORDS[thing.column or ''][0]}"
        for stated, thing in pairs
        if stated.column not in (None, thing.column)
    ]
    return found


def repair(complaint: str, scene: Scene) -> str:
    """The remark that answers a complaint when `scene` is what the next picture should show."""
    if complaint.startswith("there is no "):
        return f"there is a {complaint.removeprefix('there is no ')}"
    if complaint.startswith("it is "):
        return f"it is {PLACES[scene.background or ''][1][0]}"
    for thing in scene.things:
        if complaint.startswith(f"the {thing.kind} is "):
            said = complaint.removeprefix(f"the {thing.kind} is ")
            if said in COLOURS and said != thing.colour:
                return f"the {thing.kind} is {thing.colour}"
            if said in SIZE_OF and said != thing.size:
                return f"the {thing.kind} is {thing.size}"
            if said in COLUMN_OF and said != COLUMN_WORDS[thing.column or ""][0]:
                return f"the {thing.kind} is {COLUMN_WORDS[thing.column or ''][0]}"
    return "nothing else"
