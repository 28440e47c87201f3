"""Sweeps of judges, true and altered captions for validators, and what is read from both."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mllm_questions
import numpy as np
import pytest
import workplaces
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from t2i_feedback.calibration import claims, sweeps
from t2i_feedback.calibration.agreement import Agreement, together
from t2i_feedback.calibration.claims import CalibratedValidator
from t2i_feedback.calibration.images import calibration_rows
from t2i_feedback.calibration.sweeps import CalibratedJudge
from t2i_feedback.datasets.alterations import contradicts
from t2i_feedback.datasets.postcards.captions import caption
from t2i_feedback.datasets.postcards.drawing import render
from t2i_feedback.datasets.postcards.world import Scene, sample_scene
from t2i_feedback.datasets.postcards.writing import write_dataset
from t2i_feedback.foundation import paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.files import write_json
from t2i_feedback.foundation.rows import CalibrationRow, CaptionRow, read_rows, write_rows
from t2i_feedback.foundation.traits import directions
from t2i_feedback.mllm import wording
from t2i_feedback.mllm.base import Reply, Request
from t2i_feedback.mllm.wording import TEMPLATES
from t2i_feedback.reporting import calibration
from t2i_feedback.rewards.mllm import require_calibrated
from t2i_feedback.stages import calibrate, calibrate_validator, finetune
from t2i_feedback.tools import calibrate_entry

REPOSITORY = Path(__file__).parents[3]

PREFERENCE = (
    "images that have a dark, subdued color palette with a blurred appearance, "
    "creating a somber and introspective atmosphere"
)


@pytest.mark.parametrize(
    ("preference", "wanted"),
    [
        (PREFERENCE, {"brightness": -1, "contrast": -1, "saturation": -1, "blur": 1}),
        ("bright, vivid and sharp images", {"brightness": 1, "saturation": 1, "blur": -1}),
        ("images of cats", {}),
        ("dark and bright at once", {}),
    ],
)
def test_directions_are_read_from_the_preference(preference: str, wanted: dict) -> None:
    assert directions(preference) == wanted


def rows(trait, scores: list[float | None], caption_id: int = 1) -> list[CalibrationRow]:
    return [
        CalibrationRow(judge="j", trait=trait, level=level, caption_id=caption_id, score=score)
        for level, score in zip(sweeps.levels(trait, len(scores)), scores, strict=True)
    ]


def test_rank_correlation_is_a_mean_over_images_in_the_preferred_direction() -> None:
    swept = rows("brightness", [1, 2, 3]) + rows("brightness", [5, 4, 3], caption_id=2)
    swept += rows("blur", [1, None, 2, 9]) + rows("contrast", [4, 4, 4]) + rows("saturation", [1, 2, 3])
    found = sweeps.rank_correlations(swept, PREFERENCE)
    assert found == pytest.approx(
        {"rank_correlation": 0.5, "brightness": 0.0, "contrast": 0.0, "saturation": 1.0, "blur": 1.0}
    )


def test_a_preference_that_names_no_trait_has_no_rank_correlation() -> None:
    assert sweeps.rank_correlations(rows("blur", [1, 2, 3]), "cats") == {"rank_correlation": None}


def test_a_trait_without_three_valid_scores_of_an_image_has_no_rank_correlation_and_weighs_nothing() -> None:
    masked = rows("brightness", [None, 2, 1]) + rows("contrast", [None, None, None])
    found = sweeps.rank_correlations(masked + rows("blur", [1, 2, 3]), PREFERENCE)
    assert found == {"rank_correlation": 1.0, "brightness": None, "contrast": None, "saturation": None, "blur": 1.0}


def test_changes_change_what_they_say() -> None:
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    image.paste((200, 20, 20), (0, 0, 20, 20))
    dark, grey = sweeps.change(image, "brightness", 0.5), sweeps.change(image, "saturation", 0.0)
    assert dark.getpixel((5, 5)) == (100, 10, 10)
    assert len(set(grey.getpixel((5, 5)))) == 1
    assert sweeps.change(image, "blur", 0.0).tobytes() == image.tobytes()
    assert sweeps.levels("blur", 5) == [0.0, 0.6, 1.2, 1.8, 2.4]


# ------------------------------------------------------------------------------------------------ judges


class Judge:
    """A Mllm whose score of an image is a function of the question and of its place among those asked together."""

    templates, reading = "postcards", "probability"

    def __init__(self, score: Callable[[Request, int], float | None]):
        self.score = score

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        raise NotImplementedError

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        scores = [self.score(request, place) for place, request in enumerate(requests)]
        return [
            Reply("refusal", "I cannot") if score is None else Reply("valid", "", _probabilities(score, candidates))
            for score in scores
        ]


def _probabilities(score: float, candidates: tuple[str, ...]) -> dict[str, float]:
    """On the first and the last candidate, with the expectation `score` between them: 1..10, or P(yes)."""
    if candidates == ("yes", "no"):
        return {"yes": score, "no": 1 - score}
    return dict.fromkeys(candidates, 0.0) | {"1": (10 - score) / 9, "10": (score - 1) / 9}


def darkness(request: Request, place: int) -> float:
    assert request.image is not None
    return 10 - 9 * float(np.asarray(request.image).mean()) / 255


IMAGES = [render(sample_scene(random.Random(i)), random.Random(i)) for i in range(4)]
ROWS = [CaptionRow(caption_id=i, image_id=i, caption=f"caption {i}", image="") for i in range(4)]


def calibrated(score: Callable[[Request, int], float | None], max_invalid_fraction: float = 0.1) -> CalibratedJudge:
    return sweeps.calibrate_judge(
        "j",
        Judge(score),
        IMAGES,
        ROWS,
        preference="dark images",
        level_count=5,
        max_invalid_fraction=max_invalid_fraction,
        seed=0,
    )


def test_a_judge_that_sees_darkness_ranks_a_preference_for_it_and_agrees_with_itself() -> None:
    found = calibrated(darkness)
    assert found.numbers["rank_correlation"] == pytest.approx(1)
    assert found.numbers["retest_difference"] == 0
    assert found.numbers["paraphrase_difference"] == 0
    assert found.numbers["paraphrase_correlation"] == pytest.approx(1)
    assert len(found.retest.pairs) == 2 * len(IMAGES)
    assert len(found.paraphrases) == 2


def test_an_answer_that_depends_on_the_other_questions_of_its_batch_fails_the_retest() -> None:
    found = calibrated(lambda request, place: darkness(request, place) - 0.1 * (place % 7))
    assert found.numbers["retest_difference"] > 0.05  # type: ignore[operator]


def test_an_answer_that_depends_on_the_sample_fails_the_retest() -> None:
    found = calibrated(lambda request, place: darkness(request, place) - request.sample)
    assert found.numbers["retest_difference"] == pytest.approx(1)


def test_an_answer_that_depends_on_the_words_shows_among_the_paraphrases_only() -> None:
    found = calibrated(lambda request, place: darkness(request, place) - 0.5 * request.text.startswith("Score"))
    assert found.numbers["retest_difference"] == 0
    assert found.numbers["paraphrase_difference"] == pytest.approx(0.25)  # one wording of two


def test_invalid_answers_are_counted_beside_each_number_and_never_become_one() -> None:
    found = calibrated(lambda r, place: None if r.sample else darkness(r, place), max_invalid_fraction=0.1)
    assert found.numbers["invalid"] == 0
    assert found.numbers["retest_invalid"] == 1
    assert found.numbers["retest_difference"] is None
    assert found.numbers["paraphrase_invalid"] == 0


def test_too_many_invalid_answers_stop_the_calibration_with_what_was_said() -> None:
    with pytest.raises(UserError, match=r"scores of j: .* not valid.*I cannot"):
        calibrated(lambda request, place: None)


def test_agreement_is_over_questions_with_two_valid_answers() -> None:
    agreement = Agreement([1.0, None, 3.0, 4.0], [2.0, 5.0, None, 4.0])
    assert agreement.pairs == [(1.0, 2.0), (4.0, 4.0)]
    assert agreement.difference == 0.5
    assert agreement.invalid == 0.25
    assert agreement.agreeing(1.5) == 0.5
    assert agreement.correlation == pytest.approx(1)


def test_agreement_of_nothing_has_no_numbers() -> None:
    nothing = together([])
    assert (nothing.difference, nothing.correlation, nothing.invalid, nothing.agreeing(0.5)) == (None,) * 4


# ------------------------------------------------------------------------------------------------ validators


def drawn_rows(count: int, first: int = 0) -> tuple[list[CaptionRow], list[Scene]]:
    """Rows with medium captions under data/dataset, with their images, and the scenes that these show."""
    rows, scenes = [], []
    for i in range(first, first + count):
        rng = random.Random(i)
        scene = sample_scene(rng)
        text, facts = caption(scene, rng, "medium")
        image = paths.DATASET / "images" / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        render(scene, rng).save(image)
        rows.append(CaptionRow(caption_id=i, image_id=i, caption=text, image=f"images/{i}.png", facts=facts.to_json()))
        scenes.append(scene)
    return rows, scenes


def validated(
    validator: Judge, rows: Sequence[CaptionRow], questions: bool = False, threshold: float = 0.5
) -> CalibratedValidator:
    return claims.calibrate_validator(
        validator,
        paths.DATASET,
        rows,
        questions=questions,
        threshold=threshold,
        max_invalid_fraction=0.1,
        image_side=512,
        seed=0,
    )


def test_altered_claims_are_false_of_their_images_and_the_others_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, scenes = drawn_rows(30)
    stated = claims.stated_captions(paths.DATASET, rows)
    put = claims.claims(rows, stated, random.Random(0))
    facts = {row.caption: Scene.from_json(row.facts) for row in rows if row.facts}
    kinds = {claim.altered for claim in put}
    assert kinds == {None, "kind", "colour", "size", "column", "background", "other"}
    for claim in put:
        if claim.altered in (None, "other"):
            assert contradicts(facts[claim.caption], scenes[claim.image]) is (claim.altered == "other")
        else:
            assert claim.caption not in facts
            assert claim.caption != rows[claim.image].caption


def test_annotations_give_captions_that_state_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest captions, which are the default's, state no sizes and columns: longer ones of the image do."""
    monkeypatch.chdir(tmp_path)
    for _ in write_dataset(paths.DATASET, {"val": 6}, seed=1):
        pass
    entries = json.loads((paths.DATASET / "annotations" / "captions_val.json").read_text())["annotations"]
    rows = [
        CaptionRow(caption_id=e["id"], image_id=e["image_id"], caption=e["caption"], image="", facts=e["facts"])
        for e in entries[::5]
    ]
    stated = claims.stated_captions(paths.DATASET, rows)
    put = claims.claims(rows, stated, random.Random(0))
    assert {"size", "column", "background"} <= {claim.altered for claim in put}
    known = {(e["image_id"], e["caption"]) for e in entries}
    assert all((rows[c.image].image_id, c.caption) in known for c in put if c.altered is None)


def test_without_facts_the_false_captions_are_those_of_other_images() -> None:
    rows = [row.model_copy(update={"caption": "the same" if i < 2 else row.caption}) for i, row in enumerate(ROWS)]
    put = claims.claims(rows, [[] for _ in rows], random.Random(0))
    false = [claim for claim in put if claim.altered]
    assert {claim.altered for claim in false} == {"other"}
    assert all(claim.caption != rows[claim.image].caption for claim in false)
    assert len(false) == 2 + 2 + 2 + 2  # "the same" twice is one caption


def test_a_validator_that_knows_and_one_that_nods_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows, _ = drawn_rows(12)
    true = {row.caption for row in rows}
    nods = claims.numbers(validated(Judge(lambda r, place: 0.7), rows))
    assert (nods["accepted_true"], nods["rejected_colour"], nods["balanced_accuracy"]) == (1, 0, 0.5)
    assert nods["auc"] == 0.5
    knowing = Judge(lambda r, place: 0.4 if any(f" {caption}?" in r.text for caption in true) else 0.1)
    calibrated = validated(knowing, rows)
    kept = [(c, v) for c, v in zip(calibrated.claims, calibrated.p_yes, strict=True) if c.altered != "other"]
    calibrated = replace(calibrated, claims=[c for c, _ in kept], p_yes=[v for _, v in kept])
    knows = claims.numbers(calibrated)
    assert (knows["accepted_true"], knows["rejected_colour"], knows["auc"]) == (0, 1, 1)
    assert knows["best_threshold"] == pytest.approx(0.25)
    assert knows["best_threshold_accuracy"] == 1


def test_masked_verdicts_stop_the_calibration_of_a_validator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows, _ = drawn_rows(3)
    with pytest.raises(UserError, match=r"verdicts: .* not valid"):
        validated(Judge(lambda r, place: None), rows)


# ------------------------------------------------------------------------------------------------ stages


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_folder: Path) -> Path:
    """A repository whose judges are tiny LLaVAs with random weights: unfit, as they hardly ever answer with a score."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_NO_TRACKING", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    raw = workplaces.ours()
    entry = {"backend": "local", "model": str(llava_folder), "batch_size": 16, "templates": "postcards"}
    raw["mllms"] |= {"tiny": entry, "tiny-judge": entry}
    raw["stage1"] |= {"mllm": "tiny", "max_invalid_fraction": 1.0}
    raw["finetune"] |= {"judge": "tiny", "preference": "dark, subdued images", "max_invalid_fraction": 1.0}
    raw["evaluate"] |= {"judge": "tiny-judge"}
    raw["calibrate"] |= {"images": 4, "levels": 3}
    workplaces.furnish(raw)
    rows, _ = drawn_rows(12)
    write_rows(paths.REFERENCE_CAPTIONS, rows[:8])
    write_rows(paths.EVALUATION_CAPTIONS, rows[:4])
    write_rows(paths.FINETUNE_CAPTIONS, rows[8:])
    return tmp_path


def test_a_judge_without_valid_scores_stops_finetune_which_names_a_plot_that_is_there(
    repository: Path,
) -> None:
    calibrate.main()
    with pytest.raises(UserError, match=r"tiny gave too few valid scores .* ranks brightness, contrast") as refused:
        finetune.main()
    named = next(word for word in str(refused.value).split() if ".png" in word).rstrip(".;,")
    with Image.open(named) as plot:
        assert min(plot.size) > 300
    assert not paths.ADAPTER.exists()
    assert {path.name for path in paths.JUDGE_PLOTS.iterdir()} == {"sweeps.png", "retest.png", "paraphrases.png"}
    assert set(json.loads(paths.CALIBRATION_NUMBERS.read_text())) == {"tiny", "tiny-judge"}


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.49])
def test_a_correlation_below_the_limit_is_named_with_the_plot(repository: Path, correlation: float) -> None:
    write_json(paths.CALIBRATION_NUMBERS, {"tiny": {"rank_correlation": correlation}})
    with pytest.raises(UserError) as refused:
        finetune.main()
    assert f"correlation of {correlation:.2f}, below calibrate.min_rank_correlation 0.5" in str(refused.value)
    assert "data/calibration/plots/sweeps.png" in str(refused.value)


@pytest.mark.parametrize("correlation", [0.5, 1.0, None])  # None: the preference names no trait
def test_a_judge_that_ranks_well_or_cannot_be_measured_is_let_through(
    repository: Path, correlation: float | None
) -> None:
    write_json(paths.CALIBRATION_NUMBERS, {"tiny": {"rank_correlation": correlation}})
    require_calibrated("tiny", 0.5, paths.CALIBRATION_NUMBERS, paths.JUDGE_PLOTS / "sweeps.png")


def test_finetune_asks_for_the_calibration_of_its_judge(repository: Path) -> None:
    with pytest.raises(UserError, match="has no tiny: run `dvc repro calibrate`"):
        finetune.main()


def test_a_random_validator_is_measured_and_drawn(repository: Path) -> None:
    calibrate_validator.main()
    found = json.loads(paths.VALIDATOR_NUMBERS.read_text())
    assert {"balanced_accuracy", "auc", "best_threshold", "retest_invalid", "paraphrase_agreement"} <= set(found)
    names = {"captions.png", "reliability.png", "threshold.png", "retest.png", "paraphrases.png"}
    assert {path.name for path in paths.VALIDATOR_PLOTS.iterdir()} == names


@pytest.mark.slow
def test_one_entry_is_calibrated_apart_from_the_dags_outputs(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate_entry.main("tiny")
    said = capsys.readouterr().out
    assert "tiny as judge" in said
    assert "rank correlation" in said
    assert "balanced accuracy" in said
    folder = paths.CALIBRATED_ENTRIES / "tiny"
    assert len(list(folder.rglob("*.png"))) == 8
    assert set(json.loads((folder / "numbers.json").read_text())) == {"judge", "validator", "enhancer"}
    assert not paths.METRICS.exists()
    assert not paths.CALIBRATION.exists()


def test_an_unknown_entry_is_named_with_the_known_ones(repository: Path) -> None:
    with pytest.raises(UserError, match=r"JUDGE: 'llava' is no entry of mllms; there are .*llava16-7b"):
        calibrate_entry.main("llava")


def test_calibration_images_are_not_evaluated_on(repository: Path) -> None:
    evaluated = {row.caption_id for row in read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)}
    pools = (paths.REFERENCE_CAPTIONS, paths.FINETUNE_CAPTIONS)
    few, many = (calibration_rows(paths.EVALUATION_CAPTIONS, pools, count, seed=0) for count in (4, 100))
    assert {row.caption_id for row in few} == {4, 5, 6, 7}  # reference images come first
    assert {row.caption_id for row in many} == {4, 5, 6, 7, 8, 9, 10, 11}
    assert not evaluated & {row.caption_id for row in many}


# ------------------------------------------------------------------------------------------------ paraphrases


@pytest.mark.parametrize("templates", ["general", "postcards"])
def test_every_set_of_templates_has_two_paraphrases_that_ask_for_the_same(templates: str) -> None:
    words = {"judge": "preference", "validate": "caption", "validate_with_reason": "caption"}
    if templates == "general":
        words["question"] = "item"  # the shipped models know one wording of it
    for name, word in words.items():
        texts = [path.read_text() for path in sorted((TEMPLATES / templates).rglob(f"{name}.txt"))]
        assert len(set(texts)) == 3
        assert all(re.findall(r"{(\w+)}", text) == [word] for text in texts)


class ItemJudge(Judge):
    """It finds two items in every caption, and answers `score` to a question about one."""

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        return [Reply("valid", "a red house; a boat") for _ in requests]


@pytest.mark.parametrize(("templates", "wordings"), [("general", 2), ("postcards", 0)])
def test_item_by_item_only_wordings_of_that_question_are_paraphrases(
    templates: str, wordings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, _ = drawn_rows(3)
    validator = ItemJudge(lambda request, place: 0.9)
    validator.templates = templates
    found = validated(validator, rows, questions=True)
    assert len(found.paraphrases) == wordings
    numbers = claims.numbers(found)
    assert numbers["paraphrase_agreement"] == (1 if wordings else None)
    assert numbers["retest_agreement"] == 1


@pytest.mark.parametrize(("threshold", "accepted"), [(0.5, 1), (0.8, 0)])
def test_item_by_item_the_threshold_of_stage_1_decides_what_a_share_of_items_is(
    threshold: float, accepted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, _ = drawn_rows(3)
    sees_one_of_two = ItemJudge(lambda request, place: 0.9 if "boat" in request.text else 0.1)
    found = validated(sees_one_of_two, rows, questions=True, threshold=threshold)
    assert set(found.p_yes) == {0.5}
    numbers = claims.numbers(found)
    assert (numbers["accepted_true"], numbers["rejected_colour"]) == (accepted, 1 - accepted)


def test_item_by_item_the_images_speak_of_a_share_of_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = kept_figures(monkeypatch)
    rows, _ = drawn_rows(3)
    validator = ItemJudge(lambda request, place: 0.9)
    found = validated(validator, rows, questions=True, threshold=0.8)
    calibration.draw_validator("j", found, tmp_path)
    words = [[text.get_text() for text in figure.findobj(Text)] for figure in figures]
    assert all(any("share of items" in text for text in texts) for texts in words)
    assert not any("P(yes)" in text for texts in words for text in texts)
    assert "j: right answers; accepted is share of items from 0.8" in words[0]


def test_a_broken_paraphrase_is_named_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "TEMPLATES", tmp_path)
    other = tmp_path / "postcards" / "paraphrase-1" / "judge.txt"
    other.parent.mkdir(parents=True)
    other.write_text("How much would you like it?")
    wording.template.cache_clear()
    asked: list[Request] = []
    with pytest.raises(UserError, match=r"paraphrase-1/judge\.txt lacks its placeholder \{preference\}"):
        calibrated(lambda request, place: asked.append(request))
    assert asked == []
    wording.template.cache_clear()


def kept_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved from now on."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **how: (figures.append(self), save(self, *a, **how)))
    return figures


def drawn_axes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, askings: list[list[tuple[float, float]]]) -> Axes:
    """The panel of a model's second askings."""
    figures = kept_figures(monkeypatch)
    calibration.agreement({"j": askings}, calibration.SCORES, "in other words", tmp_path / "paraphrases.png")
    return figures[0].axes[0]


def test_every_paraphrase_is_drawn_with_a_mark_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn_axes(monkeypatch, tmp_path, [[(1, 1)], [(2, 2)], [(3, 6)]])
    marks = [(line.get_color(), line.get_marker()) for line in axes.lines[1:]]  # the first is the line of equality
    assert len(set(marks)) == 3
    assert axes.get_title("left") == "j: mean difference 1"


@pytest.mark.parametrize(("askings", "title"), [([], "j: not asked"), ([[]], "j: no valid answers")])
def test_a_image_without_answers_says_why(
    askings: list, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn_axes(monkeypatch, tmp_path, askings).get_title("left") == title


def test_the_shipped_model_was_taught_its_paraphrases() -> None:
    taught = {
        "judge": [words.format("{preference}") for words in mllm_questions.PARAPHRASES[mllm_questions.JUDGE]],
        "validate": [words.format("{caption}") for words in mllm_questions.PARAPHRASES[mllm_questions.VALIDATE]],
    }
    for name, expected in taught.items():
        found = [path.read_text().strip() for path in sorted(TEMPLATES.glob(f"postcards/paraphrase-*/{name}.txt"))]
        assert found == expected
