"""The stages reference and evaluate, run as programs run them on a small drawn data set and a tiny LLaVA."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
import workplaces
from PIL import Image
from tiny_experiment import EVALUATE

from t2i_feedback.evaluation import extractors, measuring
from t2i_feedback.foundation import params, paths
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, EvaluationRow, FidRow, ImageRow, RoundRow, read_rows, write_rows
from t2i_feedback.mllm import wording
from t2i_feedback.stages import evaluate, reference

pytestmark = pytest.mark.slow  # the whole stage, with its feature network

REPOSITORY = Path(__file__).parents[3]
COUNT = 8


def write_params(mllm: Path) -> None:
    p = workplaces.ours()
    p["data"] |= {"evaluation_captions": COUNT, "reference_images": COUNT, "finetune_captions": COUNT}
    p["mllms"]["postcards"] |= {"model": str(mllm), "templates": "postcards", "batch_size": 8}
    p["mllms"]["postcards-judge"] |= {"model": str(mllm), "templates": "postcards", "batch_size": 8}
    p["evaluate"] |= EVALUATE
    workplaces.furnish(p, models=False)


def draw_arm(arm: str, rounds: int) -> None:
    """An arm whose images are the real images; of several rounds the second one's image is kept."""
    folder = paths.arm(arm)
    (folder / "images").mkdir(parents=True)
    drawn, kept = [], []
    for caption in read_rows(paths.EVALUATION_CAPTIONS, CaptionRow):
        for number in range(1, rounds + 1):
            name = f"images/{caption.caption_id}-{number}.png"
            (folder / name).write_bytes((paths.DATASET / caption.image).read_bytes())
            drawn.append(
                ImageRow(
                    caption_id=caption.caption_id,
                    round=number,
                    prompt=caption.caption,
                    image=name,
                    accepted=None if rounds == 1 else number == 2,
                    tokens_lost=2 if rounds == 1 else None,
                )
            )
        kept.append(drawn[-1])
    write_rows(folder / "rounds.jsonl", drawn)
    write_rows(folder / "images.jsonl", reversed(kept))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_folder: Path) -> Path:
    from t2i_feedback.datasets.postcards import world
    from t2i_feedback.evaluation.alignment import Oracle, Vocabulary
    from t2i_feedback.stages import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_params(llava_folder)
    data.main()
    vocabulary = Vocabulary(
        world.BACKGROUNDS,
        world.GROUND_KINDS,
        world.SKY_KINDS,
        tuple(world.COLOURS),
        world.SIZES,
        world.COLUMNS,
    )
    Oracle(vocabulary).save_pretrained(paths.ORACLE)
    return tmp_path


def test_evaluate_measures_every_caption_of_an_arm(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    draw_arm("validated", rounds=2)
    for arm in ("raw", "validated"):
        evaluate.main(arm)
    rows = read_rows(paths.evaluation("validated") / "per_image.jsonl", EvaluationRow)
    captions = read_rows(paths.EVALUATION_CAPTIONS, CaptionRow)
    assert [row.caption_id for row in rows] == [caption.caption_id for caption in captions]
    assert all(row.accepted and row.rounds == 2 and row.alignment is not None for row in rows)
    assert len(read_rows(paths.evaluation("validated") / "rounds.jsonl", RoundRow)) == 2 * COUNT

    raw, validated = (json.loads(paths.arm_numbers(arm).read_text()) for arm in ("raw", "validated"))
    assert raw["fid"] == pytest.approx(0, abs=1e-3)  # the arm is the reference
    assert (raw["n"], raw["rounds_mean"], validated["rounds_mean"]) == (COUNT, 1, 2)
    assert all(isinstance(value, int | float) for value in raw.values())
    assert {f"invalid_{role}" for role in ("judge", "held_out", "validator")} <= raw.keys()
    cards = [(paths.evaluation(arm) / "card.json").read_text() for arm in ("raw", "validated")]
    assert cards[0] == cards[1]
    card = json.loads(cards[0])
    assert card["reference_n"] == COUNT
    assert card["templates"] == wording.version("postcards")
    assert card["judge_reading"] in ("probability", "none is valid")
    assert (raw["tokens_lost"], "tokens_lost" in validated) == (2, False)  # nobody counted those of the second


def change(section: str, **values: object) -> None:
    changed = params.read()
    changed[section] |= values
    workplaces.furnish(changed, models=False)


def card(arm: str) -> dict:
    return json.loads((paths.evaluation(arm) / "card.json").read_text())


def test_evaluating_k_arms_takes_k_and_one_feature_passes_and_decodes_every_image_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change("evaluate", vqa_score=True, questions=True, clip_score=str(tiny_clip.save(workplace / "clip")))
    draw_arm("raw", rounds=1)
    draw_arm("validated", rounds=2)
    decoded: Counter[Path] = Counter()
    shown: list[int] = []
    load, forward = Image.Image.convert, extractors.EfficientNetLite0.forward

    def counted(image: Image.Image, *arguments: object, **named: object) -> Image.Image:
        if getattr(image, "filename", ""):
            decoded[Path(image.filename).resolve().relative_to(workplace)] += 1
        return load(image, *arguments, **named)

    def watched(extractor: extractors.EfficientNetLite0, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shown.append(len(pixels))
        return forward(extractor, pixels)

    monkeypatch.setattr(Image.Image, "convert", counted)
    monkeypatch.setattr(extractors.EfficientNetLite0, "forward", watched)
    reference.main()
    for arm in ("raw", "validated"):
        evaluate.main(arm)
    assert sum(shown) == (2 + 1) * COUNT
    drawn = [paths.arm("raw"), paths.arm("validated")]
    assert {file.parent for file in decoded} == {paths.DATASET / "images", *(folder / "images" for folder in drawn)}
    assert len([file for file in decoded if paths.arm("validated") in file.parents]) == 2 * COUNT
    assert set(decoded.values()) == {1}


def test_clip_vqa_and_item_scores_are_measured_where_they_are_asked_for(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    plain, plain_card = json.loads(paths.arm_numbers("raw").read_text()), card("raw")
    clip_folder = str(tiny_clip.save(workplace / "clip", 3))
    change("evaluate", vqa_score=True, vqa_mllm="postcards", questions=True, clip_score=clip_folder)
    evaluate.main("raw")
    metrics = json.loads(paths.arm_numbers("raw").read_text())
    rows = read_rows(paths.evaluation("raw") / "per_image.jsonl", EvaluationRow)
    assert {key: metrics[key] for key in plain} == pytest.approx(plain)  # what was measured before stays the same
    assert metrics.keys() - plain.keys() >= {"clip_score", "invalid_vqa", "invalid_questions"}
    assert metrics["clip_score"] == pytest.approx(np.mean([row.clip_score for row in rows]))
    known = [row.vqa_score for row in rows if row.vqa_score is not None]
    assert len(known) == round((1 - metrics["invalid_vqa"]) * COUNT)
    assert all(0 <= score <= 1 for score in known)
    assert card("raw").items() - plain_card.items() >= {
        ("clip_score", f"2.5 max(cos, 0), {clip_folder}"),
        ("vqa_score", "P(yes), postcards"),
    }


def test_features_are_taken_at_the_evaluations_own_size_and_light_as_drawn(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    at_64 = json.loads(paths.arm_numbers("raw").read_text())
    change("evaluate", size=32, resizer="squash_bicubic")
    reference.main()
    evaluate.main("raw")
    at_32 = json.loads(paths.arm_numbers("raw").read_text())
    assert at_32["is"] != at_64["is"]
    assert at_32["brightness"] == at_64["brightness"]
    assert (card("raw")["resolution"], card("raw")["drawn_at"]) == (32, 64)
    assert card("raw")["resizer"] == "the whole image to a square by Pillow's bicubic"


def test_features_of_clip_give_all_but_an_inception_score(workplace: Path) -> None:
    change("evaluate", extractor="clip", weights=str(tiny_clip.save(workplace / "clip")))
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    metrics = json.loads(paths.arm_numbers("raw").read_text())
    assert metrics["fid"] == pytest.approx(0, abs=1e-3)
    assert not metrics.keys() & {"is", "is_std"}
    assert (card("raw")["classes"], card("raw")["is_std"]) == (0, "none: no classes, no score")


def test_weights_that_changed_since_the_reference_was_made_are_refused(workplace: Path) -> None:
    change("evaluate", extractor="clip", weights=str(tiny_clip.save(workplace / "clip")))
    reference.main()
    tiny_clip.save(workplace / "clip", seed=1)
    draw_arm("raw", rounds=1)
    with pytest.raises(UserError, match=r"data/reference was made with the weights .* run `dvc repro -s -f reference`"):
        evaluate.main("raw")


def test_brightness_and_contrast_are_those_by_hand(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    by_caption = {row.caption_id: row for row in read_rows(paths.arm("raw") / "images.jsonl", ImageRow)}
    rows = read_rows(paths.evaluation("raw") / "per_image.jsonl", EvaluationRow)
    for row in rows:
        with Image.open(paths.arm("raw") / by_caption[row.caption_id].image) as image:
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.float64), -1, 0)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        assert row.brightness == pytest.approx(luma.mean(), abs=1e-6)
        assert row.contrast == pytest.approx(np.sqrt(((luma - luma.mean()) ** 2).mean()), abs=1e-6)
    metrics = json.loads(paths.arm_numbers("raw").read_text())
    assert metrics["contrast"] == pytest.approx(np.mean([row.contrast for row in rows]))


def test_the_card_has_everything_of_the_evaluation_protocol(workplace: Path) -> None:
    """Section 9 of the design: n, resolution, resizer, reference, format, steps, guidance, sampler, extractor, ..."""
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    needed = {"protocol", "n", "resolution", "drawn_at", "resizer", "reference_set", "reference_n", "reference_format"}
    needed |= {"image_format", "steps", "guidance", "sampler", "extractor", "weights", "is_std", "fid_std", "seed"}
    assert needed <= card("raw").keys()
    assert card("raw")["is_std"] == "over 2 splits"


def test_fid_against_n_ends_at_the_fid(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    evaluate.main("raw")
    points = read_rows(paths.evaluation("raw") / "fid_by_n.jsonl", FidRow)
    assert [point.n for point in points] == [2, 3, 4, 5, 6, 7, 8]
    assert points[-1].fid == json.loads(paths.arm_numbers("raw").read_text())["fid"]


def test_a_stage_1_model_of_text_alone_is_not_asked_to_validate(workplace: Path) -> None:
    changed = params.read()
    changed["stage1"]["mllm"] = "smollm2"
    workplaces.furnish(changed, models=False)
    reference.main()
    draw_arm("enhanced", rounds=1)
    evaluate.main("enhanced")
    rows = read_rows(paths.evaluation("enhanced") / "per_image.jsonl", EvaluationRow)
    assert {(row.p_yes, row.accepted) for row in rows} == {(None, None)}
    metrics = json.loads(paths.arm_numbers("enhanced").read_text())
    assert "invalid_judge" in metrics
    assert not metrics.keys() & {"p_yes", "acceptance_rate", "invalid_validator"}
    card = json.loads((paths.evaluation("enhanced") / "card.json").read_text())
    assert card["validator"] == "none: smollm2 reads text alone"
    assert "validator_reading" not in card


def test_problems_are_one_line_each(workplace: Path) -> None:
    with pytest.raises(UserError, match="which arm"):
        evaluate.main("row")
    with pytest.raises(UserError, match="data/reference is missing"):
        evaluate.main("raw")


def test_a_black_image_of_the_safety_checker_never_enters_a_metric(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    images = read_rows(paths.arm("raw") / "rounds.jsonl", ImageRow)
    seen = [row.model_copy(update={"flagged": row is images[1]}) for row in images]
    for name in ("rounds", "images"):
        write_rows(paths.arm("raw") / f"{name}.jsonl", seen)
    changed = params.read()
    changed["model"]["safety_checker"] = "on"
    workplaces.furnish(changed, models=False)
    with pytest.raises(UserError, match=rf"1 of {COUNT} images are black.*With model.safety_checker: report"):
        evaluate.main("raw")
    assert not paths.arm_numbers("raw").exists()


def test_flags_of_images_that_are_kept_stand_beside_the_metrics() -> None:
    def row(flagged: bool | None) -> ImageRow:
        return ImageRow(caption_id=1, round=1, prompt="a", image="a.png", flagged=flagged)

    assert measuring.flags([row(True), row(False), row(True)]) == {"flagged": 2}
    assert measuring.flags([row(False)]) == {"flagged": 0}
    assert measuring.flags([row(None)]) == {}


def test_an_arm_must_have_one_image_for_every_caption() -> None:
    captions = [CaptionRow(caption_id=i, image_id=i, caption="a", image="a.png") for i in (1, 2)]
    images = [ImageRow(caption_id=i, round=1, prompt="a", image="a.png") for i in (2, 1, 1)]
    ordered = measuring.in_order(images[:2], captions, Path("arm"))
    assert [image.caption_id for image in ordered] == [1, 2]
    for wrong in (images, images[:1], images[1:]):
        with pytest.raises(UserError, match="do not match the 2 captions"):
            measuring.in_order(wrong, captions, Path("arm"))


def test_means_leave_out_what_was_not_measured() -> None:
    def row(i: int, score: float | None, accepted: bool | None) -> EvaluationRow:
        return EvaluationRow(
            caption_id=i,
            brightness=100 + i,
            contrast=1,
            sharpness=0.5,
            alignment=None,
            whole=None,
            judge_score=score,
            held_out_score=None,
            p_yes=None,
            accepted=accepted,
            rounds=i,
        )

    found = measuring.means([row(1, 4.0, True), row(2, None, False), row(3, 8.0, None)])
    assert found["brightness"] == 102
    assert (found["judge_score"], found["acceptance_rate"]) == (6, 0.5)
    assert (found["rounds_mean"], found["rounds_std"]) == (2, pytest.approx((2 / 3) ** 0.5))
    assert not found.keys() & {"alignment", "whole", "held_out_score", "p_yes", "caption_id"}
