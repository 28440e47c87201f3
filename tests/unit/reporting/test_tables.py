from pathlib import Path

import pytest

from t2i_feedback.arms import by_name
from t2i_feedback.reporting import paper, protocols, tables
from t2i_feedback.reporting.evidence import MeasuredArm


def arm(name: str, card: dict | None = None, **metrics: float) -> MeasuredArm:
    return MeasuredArm(by_name(name), Path(), metrics, card or {}, measured={}, images={})


def line(table: tables.Table, name: str) -> tuple[str, ...]:
    return next(row.cells for row in table.rows if row.cells[0].startswith(name))


@pytest.mark.parametrize(
    ("value", "digits", "spread", "text"),
    [(0.714, 2, None, "0.71"), (24.95, 2, 0.51, "24.95 ± 0.51"), (-3.14, 1, None, "−3.1"), (None, 2, None, "–")],
)
def test_number(value: float | None, digits: int, spread: float | None, text: str) -> None:
    assert tables.number(value, digits, spread) == text


@pytest.mark.parametrize(("value", "text"), [(0.123, "+0.12"), (-0.126, "−0.13"), (-0.001, "0.00"), (0.0, "0.00")])
def test_signed_has_no_sign_on_nothing(value: float, text: str) -> None:
    assert tables.signed(value, 2) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.004, "0.4 %"), (0.5, "50 %"), (1.0, "100 %")])
def test_percent(share: float, text: str) -> None:
    assert tables.percent(share) == text


def test_arms_table_puts_invalid_rates_below_judged_metrics_and_drops_what_nobody_has() -> None:
    table = tables.arms_table(
        [arm("raw", fid=30.0, fid_std=0.5, n=8), arm("finetuned", judge_score=6.5, invalid_judge=0.02, n=8)]
    )
    assert table.columns == ("measure", "raw", "fine-tuned")
    assert line(table, "FID") == ("FID ↓", "30.00 ± 0.50", "–")
    names = [row.cells[0] for row in table.rows]
    assert names.index("– invalid answers") == names.index("judge’s score ↑") + 1
    assert line(table, "– invalid answers")[1:] == ("–", "2.0 %")
    assert not any(name.startswith("KID") for name in names)
    assert "The loop" not in names
    assert table.note.startswith("8 images per arm")


def test_cards_are_shown_once_where_arms_agree_and_beside_what_the_paper_says() -> None:
    table = tables.cards_table(
        [arm("raw", {"n": 8, "steps": 20, "model": "sd"}), arm("enhanced", {"n": 8, "steps": 30})]
    )
    assert table is not None
    assert line(table, "n") == ("n", "8", "not stated")
    assert line(table, "steps") == ("steps", "raw: 20; enhanced: 30", "not stated")
    assert line(table, "model") == ("model", "raw: sd; enhanced: –", "Stable Diffusion 1.5")
    assert tables.cards_table([arm("raw")]) is None


def test_every_number_of_the_arms_table_has_a_card_of_its_own() -> None:
    assert set(tables.BY_KEY) == set(protocols.DECIDES)
    card = {"n": 8, "extractor": "clip", "reference_n": 30, "judge": "gpt4", "preference": "dark"}
    table = tables.number_cards([arm("raw", card, fid=30.0, judge_score=6.5), arm("finetuned", card, **{"is": 2.5})])
    assert table is not None and len(table.rows) == 3
    assert line(table, "FID") == ("FID", "n: 8; extractor: clip; reference n: 30")
    assert line(table, "Inception Score") == ("Inception Score", "n: 8; extractor: clip")
    assert line(table, "judge’s score") == ("judge’s score", "n: 8; preference: dark; judge: gpt4")


def test_an_arm_apart_has_a_table_of_its_own_that_says_what_differs() -> None:
    raw, other = arm("raw", {"n": 8, "steps": 20}), arm("finetuned", {"n": 8, "steps": 30}, fid=30.0)
    table = tables.apart_table(other, raw)
    assert table.columns == ("measure", "fine-tuned")
    assert table.note == "Not comparable with the arms above, which differ in: steps (20 there, 30 here)."


def test_the_paper_s_tables_are_complete() -> None:
    stage1, stage2 = tables.paper_stage1(), tables.paper_stage2()
    assert len(stage1.rows) == 13
    assert stage1.rows[8].cells == ("LLaVA1.5-13b", "LLaVA1.5-13b", "24.37 ± 0.46", "34.61 ± 0.50", "2.39 ± 1.64")
    assert stage1.rows[0].cells[-1] == "1"
    assert stage2.rows[1].cells == ("Fine-tuned", "29.28", "32.19 ± 1.39", "71.60", "123.78")
    assert all(len(row) == 8 for row in paper.STAGE1)


def test_our_tables_have_the_paper_s_columns() -> None:
    arms = [arm("raw", fid=30.0, brightness=120.0), arm("validated", rounds_mean=2.0, rounds_std=1.0)]
    stage1, stage2 = tables.our_stage1(arms, "llava15-7b"), tables.our_stage2(arms, "sd")
    assert stage1.columns == tables.paper_stage1().columns
    assert [row.cells for row in stage1.rows] == [
        ("None", "None", "30.00", "–", "1"),
        ("llava15-7b", "llava15-7b", "–", "–", "2.00 ± 1.00"),
    ]
    assert stage2.rows[0].cells == ("sd", "30.00", "–", "–", "120.00")
