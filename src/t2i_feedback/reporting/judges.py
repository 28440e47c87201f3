"""What the calibrations found, in tables, sentences and the images that their stages drew."""

import base64
from collections.abc import Mapping
from pathlib import Path

from t2i_feedback.reporting import tables
from t2i_feedback.reporting.evidence import Evidence
from t2i_feedback.reporting.plots import Plot
from t2i_feedback.reporting.tables import Table, number, percent

SHOWN = {  # a calibration's image -> what it shows
    "sweeps": "Mean scores along the sweeps of every trait, with standard errors.",
    "retest": "First answers against those to the same questions asked again, in another order and other batches.",
    "paraphrases": "First answers against those to the same questions in other words.",
    "captions": "Share of right answers for true captions and for each kind of altered ones.",
    "reliability": "Share of true captions by the answer, and the spread of answers over true and altered captions.",
    "threshold": "Accuracy by threshold.",
}


def image(name: str, path: Path) -> Plot:
    """A calibration's PNG file, whole."""
    return Plot("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), SHOWN[name])


def judge_numbers(evidence: Evidence) -> dict[str, Mapping[str, object]]:
    found = evidence.calibration_metrics
    return {name: numbers for name, numbers in found.items() if isinstance(numbers, Mapping)}


def numbers_table(role: str, models: Mapping[str, Mapping[str, object]]) -> Table | None:
    """A calibration's numbers: one per row, a column per model; shares of invalid answers are written as per cents."""
    keys = list(dict.fromkeys(key for numbers in models.values() for key in numbers))
    names = {key: key.replace("_", " ").replace("auc", "AUC") for key in keys}
    lines = [(names[key], *(_cell(key, numbers.get(key)) for numbers in models.values())) for key in keys]
    return tables.plain_table((f"as {role}", *models), lines) if lines else None


def _cell(key: str, value: object) -> str:
    if not isinstance(value, (int, float)):
        return tables.NOTHING
    if key.endswith("invalid"):
        return percent(value)
    return str(int(value)) if key.endswith("captions") else number(value, 3)


def validator_text(evidence: Evidence) -> str:
    """The threshold in use beside the one that calibration finds best."""
    best, accuracy = (evidence.validator_metrics.get(f"best_threshold{end}") for end in ("", "_accuracy"))
    if best is None or accuracy is None:
        return ""
    settings = evidence.settings
    answer = "a share of items" if settings.questions else "P(yes)"
    return (
        f"Accepted is what has {answer} of {settings.threshold:g} or more (stage1.threshold). On these "
        f"images {number(best, 2)} would be best, with a balanced accuracy of {number(accuracy, 3)}; nothing sets it "
        "by itself."
    )
