"""The oracle's strict scoring: assignment, extras, missing things and unstated facts."""

import torch

from t2i_feedback.evaluation.alignment import Oracle, Vocabulary, score

VOCABULARY = Vocabulary(
    ("meadow", "lake"), ("house", "car"), ("sun",), ("red", "blue"), ("small", "large"), ("left", "right")
)


def thing(kind: str, colour: str | None = None, size: str | None = None, column: str | None = None) -> dict:
    return {"kind": kind, "colour": colour, "size": size, "column": column}


def scene(background: str | None, *things: dict) -> dict:
    return {"background": background, "things": list(things)}


def test_everything_right_is_whole() -> None:
    facts = scene("lake", thing("house", "red", "small", "left"))
    found = score(facts, facts)
    assert found.whole and found.share == 1 and found.uninvited == 0
    assert found.background == found.kind == found.colour == found.size == found.column == [True]


def test_unstated_facts_are_not_asked() -> None:
    found = score(scene(None, thing("house")), scene("lake", thing("house", "red", "small", "left")))
    assert found.whole
    assert found.background == found.colour == found.size == found.column == []


def test_an_uninvited_thing_spoils_the_whole_and_lowers_the_share() -> None:
    shown = scene("lake", thing("house", "red", "small", "left"), thing("car", "red", "small", "right"))
    found = score(scene("lake", thing("house", "red")), shown)
    assert not found.whole and found.uninvited == 1 and found.share == 3 / 4


def test_a_copy_of_a_named_thing_is_uninvited() -> None:
    shown = scene("lake", thing("house", "red", "small", "left"), thing("house", "red", "small", "right"))
    assert score(scene(None, thing("house", "red")), shown).uninvited == 1


def test_an_unclear_thing_is_uninvited_and_stands_for_nothing() -> None:
    found = score(scene(None, thing("house")), scene("lake", thing("unclear", column="left")))
    assert found.kind == [False] and found.uninvited == 1 and found.share == 0


def test_a_missing_thing_has_all_its_facts_wrong() -> None:
    found = score(scene("lake", thing("house", "red", column="left")), scene("lake"))
    assert (found.kind, found.colour, found.size, found.column) == ([False], [False], [], [False])
    assert found.share == 1 / 4


def test_things_of_one_kind_are_assigned_as_well_as_possible() -> None:
    stated = scene(None, thing("fish", "red", column="left"), thing("fish", "blue", column="right"))
    shown = scene("lake", thing("fish", "blue", "small", "right"), thing("fish", "red", "small", "left"))
    assert score(stated, shown).whole


def test_swapped_colours_are_wrong() -> None:
    stated = scene(None, thing("house", "red"), thing("car", "blue"))
    shown = scene("lake", thing("house", "blue", "small", "left"), thing("car", "red", "small", "right"))
    found = score(stated, shown)
    assert found.kind == [True, True] and found.colour == [False, False] and found.uninvited == 0


def test_nothing_stated_and_nothing_shown_is_right() -> None:
    assert score(scene(None), scene("lake")).share == 1


def test_the_oracle_reads_images_in_the_worlds_words_and_survives_saving(tmp_path) -> None:
    torch.manual_seed(0)
    oracle = Oracle(VOCABULARY, (4, 4, 8, 8)).eval()
    pixels = torch.rand(5, 3, 64, 64)
    oracle.save_pretrained(tmp_path)
    again = Oracle.from_pretrained(tmp_path)
    torch.testing.assert_close(again(pixels)[0], oracle(pixels)[0], atol=1e-2, rtol=1e-2)
    for facts in again.see(pixels):
        assert facts["background"] in VOCABULARY.backgrounds
        assert all(shown["kind"] in VOCABULARY.kinds[1:] for shown in facts["things"])


def test_a_house_cannot_stand_in_the_sky() -> None:
    kinds, columns = VOCABULARY.kinds, len(VOCABULARY.columns)
    impossible = VOCABULARY.impossible
    assert impossible[columns:, kinds.index("house")].all() and not impossible[:columns, kinds.index("house")].any()
    assert impossible[:columns, kinds.index("sun")].all() and not impossible[:, :2].any()
