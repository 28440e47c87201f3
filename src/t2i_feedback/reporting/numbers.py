"""The numbers of a run: all of them, and the few that `dvc metrics`, `dvc exp show` and `dvc metrics diff` print."""

from collections.abc import Mapping
from typing import Any

from t2i_feedback import arms
from t2i_feedback.reporting.evidence import Evidence

OF_AN_ARM = ("fid", "alignment", "held_out_score", "brightness")
DETAILS = ("_low", "_high", "_accepted_minus_rejected")  # of a comparison
COMPARED = ("alignment", "held_out_score", "diversity")  # measures whose comparisons the report leads with


def every(evidence: Evidence, finetuning: Mapping[str, float], summary: Mapping[str, float]) -> dict[str, Any]:
    """By where they come from: an arm's under its name, and the comparisons of the arms with their intervals' ends."""
    found = {**evidence.arms, **evidence.apart}
    return {
        "arms": {name: dict(found[name].metrics) for name in arms.NAMES if name in found},
        "calibration": dict(evidence.calibration_metrics),
        "validator": dict(evidence.validator_metrics),
        "finetune": dict(finetuning),
        "summary": dict(summary),
    }


def headline(evidence: Evidence, summary: Mapping[str, float]) -> dict[str, Any]:
    """A few numbers of each arm, the comparisons that the report leads with, and how many alarms it has."""
    chosen = {}
    for arm in (evidence.arms[name] for name in arms.NAMES if name in evidence.arms):
        keys = (*OF_AN_ARM, "rounds_mean") if arms.by_name(arm.name).draws_several else OF_AN_ARM
        chosen[arm.name] = {key: arm.metrics[key] for key in keys if key in arm.metrics}
    led = {key: value for key, value in summary.items() if key.startswith(COMPARED) and not key.endswith(DETAILS)}
    return {**chosen, "compared": led, "alarms": summary["alarms"]}
