from t2i_feedback.reporting import before


def test_numbers_are_written_as_in_the_arms_table_and_what_looks_alike_is_counted() -> None:
    numbers = {
        "validated.fid": {"old": 151.2869, "new": 151.2871},
        "finetuned.brightness": {"old": 87.25, "new": 86.9},
        "combined.alignment": {"old": None, "new": 0.95},
        "compared.held_out_score_finetuned_minus_raw": {"old": 1.643, "new": 1.633},
        "alarms": {"old": 0.0, "new": 1.0},
    }
    found = before.compared("HEAD", {"seed": {"old": 1, "new": None}, "finetune.preference": {"new": "dark"}}, numbers)
    assert found.unseen == 1
    assert found.numbers is not None and found.parameters is not None
    assert [row.cells for row in found.numbers.rows] == [
        ("alarms", "0.000", "1.000", "+1.0000"),
        ("combined: alignment", "–", "0.950", "–"),
        ("fine-tuned: brightness", "87.2", "86.9", "−0.35"),
        ("held out score finetuned minus raw", "1.643", "1.633", "−0.0100"),
    ]
    assert [row.cells for row in found.parameters.rows] == [("finetune.preference", "–", "dark"), ("seed", "1", "–")]


def test_nothing_differs_from_the_same_run() -> None:
    found = before.compared("HEAD", {}, {})
    assert found.numbers is None and found.parameters is None
