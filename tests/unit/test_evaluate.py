"""The stages reference and evaluate, run as programs run them on a small drawn data set and a tiny LLaVA."""

import json
from pathlib import Path

import pytest
import yaml

from t2i_feedback import paths, records
from t2i_feedback.errors import UserError
from t2i_feedback.mllm import wording
from t2i_feedback.records import CaptionRow, EvaluationRow, PictureRow, RoundRow
from t2i_feedback.stages import evaluate, reference

REPOSITORY = Path(__file__).parents[2]
COUNT = 8


def write_params(mllm: Path) -> None:
    p = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    p["data"] |= {"evaluation_captions": COUNT, "reference_images": COUNT, "finetune_captions": COUNT}
    p["mllms"]["postcards"] |= {"model": str(mllm), "templates": "postcards", "batch_size": 8}
    p["mllms"]["postcards-judge"] |= {"model": str(mllm), "templates": "postcards", "batch_size": 8}
    p["evaluate"] |= {"resamples": 50, "splits": 2, "kid_subset": 4, "kid_subsets": 3, "max_invalid_fraction": 1.0}
    Path("params.yaml").write_text(yaml.safe_dump(p))


def draw_arm(arm: str, rounds: int) -> None:
    """An arm whose pictures are the real images; of several rounds the second one's picture is kept."""
    folder = paths.arm(arm)
    (folder / "images").mkdir(parents=True)
    drawn, kept = [], []
    for caption in records.read(paths.EVALUATION_CAPTIONS, CaptionRow):
        for number in range(1, rounds + 1):
            name = f"images/{caption.caption_id}-{number}.png"
            (folder / name).write_bytes((paths.DATASET / caption.image).read_bytes())
            drawn.append(
                PictureRow(
                    caption_id=caption.caption_id,
                    round=number,
                    prompt=caption.caption,
                    image=name,
                    accepted=None if rounds == 1 else number == 2,
                    tokens_lost=2 if rounds == 1 else None,
                )
            )
        kept.append(drawn[-1])
    records.write(folder / "rounds.jsonl", drawn)
    records.write(folder / "pictures.jsonl", reversed(kept))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llava_folder: Path) -> Path:
    from t2i_feedback.datasets import postcards
    from t2i_feedback.evaluation.alignment import Oracle, Vocabulary
    from t2i_feedback.stages import data

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_params(llava_folder)
    data.main()
    vocabulary = Vocabulary(
        postcards.BACKGROUNDS,
        postcards.GROUND_KINDS,
        postcards.SKY_KINDS,
        tuple(postcards.COLOURS),
        postcards.SIZES,
        postcards.COLUMNS,
    )
    Oracle(vocabulary).save_pretrained(paths.ORACLE)
    return tmp_path


def test_evaluate_measures_every_caption_of_an_arm(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    draw_arm("validated", rounds=2)
    for arm in ("raw", "validated"):
        evaluate.main(arm)
    rows = records.read(paths.evaluation("validated") / "per_image.jsonl", EvaluationRow)
    captions = records.read(paths.EVALUATION_CAPTIONS, CaptionRow)
    assert [row.caption_id for row in rows] == [caption.caption_id for caption in captions]
    assert all(row.accepted and row.rounds == 2 and row.alignment is not None for row in rows)
    assert len(records.read(paths.evaluation("validated") / "rounds.jsonl", RoundRow)) == 2 * COUNT

    raw, validated = (json.loads(paths.arm_metrics(arm).read_text()) for arm in ("raw", "validated"))
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


def test_a_stage_1_model_of_text_alone_is_not_asked_to_validate(workplace: Path) -> None:
    changed = yaml.safe_load(paths.PARAMS.read_text())
    changed["stage1"]["mllm"] = "smollm2"
    paths.PARAMS.write_text(yaml.safe_dump(changed))
    reference.main()
    draw_arm("enhanced", rounds=1)
    evaluate.main("enhanced")
    rows = records.read(paths.evaluation("enhanced") / "per_image.jsonl", EvaluationRow)
    assert {(row.p_yes, row.accepted) for row in rows} == {(None, None)}
    metrics = json.loads(paths.arm_metrics("enhanced").read_text())
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


def test_a_black_picture_of_the_safety_checker_never_enters_a_metric(workplace: Path) -> None:
    reference.main()
    draw_arm("raw", rounds=1)
    pictures = records.read(paths.arm("raw") / "rounds.jsonl", PictureRow)
    seen = [row.model_copy(update={"flagged": row is pictures[1]}) for row in pictures]
    for name in ("rounds", "pictures"):
        records.write(paths.arm("raw") / f"{name}.jsonl", seen)
    changed = yaml.safe_load(paths.PARAMS.read_text())
    changed["model"]["safety_checker"] = "on"
    paths.PARAMS.write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError, match=rf"1 of {COUNT} pictures are black.*With model.safety_checker: report"):
        evaluate.main("raw")
    assert not paths.arm_metrics("raw").exists()


def test_flags_of_pictures_that_are_kept_stand_beside_the_metrics() -> None:
    def row(flagged: bool | None) -> PictureRow:
        return PictureRow(caption_id=1, round=1, prompt="a", image="a.png", flagged=flagged)

    assert evaluate.flags([row(True), row(False), row(True)]) == {"flagged": 2}
    assert evaluate.flags([row(False)]) == {"flagged": 0}
    assert evaluate.flags([row(None)]) == {}


def test_an_arm_must_have_one_picture_for_every_caption() -> None:
    captions = [CaptionRow(caption_id=i, image_id=i, caption="a", image="a.png") for i in (1, 2)]
    pictures = [PictureRow(caption_id=i, round=1, prompt="a", image="a.png") for i in (2, 1, 1)]
    ordered = evaluate.in_order(pictures[:2], captions, Path("arm"))
    assert [picture.caption_id for picture in ordered] == [1, 2]
    for wrong in (pictures, pictures[:1], pictures[1:]):
        with pytest.raises(UserError, match="do not match the 2 captions"):
            evaluate.in_order(wrong, captions, Path("arm"))


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

    found = evaluate.means([row(1, 4.0, True), row(2, None, False), row(3, 8.0, None)])
    assert found["brightness"] == 102
    assert (found["judge_score"], found["acceptance_rate"]) == (6, 0.5)
    assert (found["rounds_mean"], found["rounds_std"]) == (2, pytest.approx((2 / 3) ** 0.5))
    assert not found.keys() & {"alignment", "whole", "held_out_score", "p_yes", "caption_id"}
