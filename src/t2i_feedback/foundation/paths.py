"""Every path of the DAG, once. Relative to the repository's root, where DVC runs each stage."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
CHECKED = Path("data/checked")  # of stage `check`: one file per key that names a checkpoint, with its digest, and
IN_ORDER = CHECKED / "in_order"  # which never changes: params.yaml is in order
DATASET = Path("data/dataset")  # images/, finetune.jsonl, evaluation.jsonl, reference.jsonl
FINETUNE_CAPTIONS = DATASET / "finetune.jsonl"  # CaptionRow
EVALUATION_CAPTIONS = DATASET / "evaluation.jsonl"  # CaptionRow
REFERENCE_CAPTIONS = DATASET / "reference.jsonl"  # CaptionRow: the real images that FID compares with
LEFT_OUT = DATASET / "left_out.json"  # there only when images were left out: how many, and why each
REFERENCE = Path("data/reference")  # features.safetensors, card.json
CALIBRATION = Path("data/calibration")  # CalibrationRow sweeps.jsonl, numbers.json, plots/
CALIBRATION_NUMBERS = CALIBRATION / "numbers.json"  # judge -> what was found of it
JUDGE_PLOTS = CALIBRATION / "plots"  # sweeps.png, retest.png, paraphrases.png
VALIDATOR = Path("data/validator")  # numbers.json, plots/
VALIDATOR_NUMBERS = VALIDATOR / "numbers.json"
VALIDATOR_PLOTS = VALIDATOR / "plots"  # captions.png, reliability.png, threshold.png, retest.png, paraphrases.png
PROMPTS = Path("data/prompts")
ARMS = Path("data/arms")
FIRST_PROMPTS = PROMPTS / "prompts.jsonl"  # PromptRow: the enhancer's prompt of round 1 per evaluation caption
CALIBRATED_ENTRIES = Path("calibrated")  # of `make calibrate`, a folder per entry; no output of the DAG
ADAPTER = Path("models/lora")  # adapter weights, history.jsonl, numbers.json
FINETUNE_NUMBERS = ADAPTER / "numbers.json"
ORACLE = Path("models/postcards/oracle")

METRICS = Path("metrics")
HEADLINE = METRICS / "headline.json"  # the few numbers that `dvc metrics` and `dvc exp show` print
NUMBERS = METRICS / "numbers.json"  # every number that was measured: of arms, calibrations and fine-tuning; differences
REPORT = METRICS / "report.html"
PLOTS = METRICS / "plots"  # CSV series and images


def arm(name: str) -> Path:
    """An arm's folder: images.jsonl (one ImageRow per caption), rounds.jsonl (every image drawn), images/."""
    return ARMS / name


def evaluation(name: str) -> Path:
    """What `evaluate` measured of an arm: per_image.jsonl (EvaluationRow), numbers.json, features.safetensors,
    card.json."""
    return Path("data/evaluation") / name


def arm_numbers(name: str) -> Path:
    return evaluation(name) / "numbers.json"


def root() -> Path:
    """The repository that keeps what outlives a run: DVC names it even in temporary experiment folders."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def cache() -> Path:
    """Partial work and the ledger: outside DVC's outputs, shared by experiments, safe to delete."""
    return root() / ".cache"


def feedback() -> Path:
    """What a person is asked and answers: a folder per preference. Outside DVC's outputs; nothing here is deleted."""
    return root() / "feedback"


def ledger() -> Path:
    """The MLLMs' answers. SQLite cannot be shared over a network: in a launch on several nodes each has its own."""
    node = os.environ.get("GROUP_RANK", "0")
    return cache() / ("ledger.sqlite" if node == "0" else f"ledger-node{node}.sqlite")
