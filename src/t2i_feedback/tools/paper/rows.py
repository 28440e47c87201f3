"""Which rows the paper's tables have, which experiment and arm of ours stand in each, and the paper's own numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from t2i_feedback import arms
from t2i_feedback.reporting import paper

# Experiments that no MLLM of the catalogue names; they are called like the arms that they are run for.
RAW, FINETUNED = arms.base().name, arms.finetuned().name


@dataclass(frozen=True)
class Figure:
    """A number, the ± that is written behind it, and the standard error that a difference reckons with."""

    value: float
    spread: float | None = None
    error: float | None = None  # None: nobody says


@dataclass(frozen=True)
class Column:
    key: str  # of an arm's metrics
    title: str
    digits: int = 2


@dataclass(frozen=True)
class TableRow:
    names: tuple[str, ...]  # as the paper writes them
    experiment: str  # RAW, FINETUNED or an entry of the catalogue
    arm: str
    paper: Mapping[str, Figure]  # column key -> the paper's number


@dataclass(frozen=True)
class Layout:
    """One of the paper's tables."""

    number: int
    title: str
    heading: tuple[str, ...]  # over the names of a row
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]

    @property
    def experiments(self) -> list[str]:
        """Each once, the first row's first."""
        return list(dict.fromkeys(row.experiment for row in self.rows))

    def arms(self, experiment: str) -> list[str]:
        return [row.arm for row in self.rows if row.experiment == experiment]


def table1() -> Layout:
    """13 rows by 7 experiments: the captions as they are, and each entry without and with its validator."""
    rows = []
    for enhancer, validator, fid, fid_std, score, score_std, rounds, rounds_std in paper.STAGE1:
        figures = {
            "fid": Figure(fid, fid_std, fid_std),
            "is": Figure(score, score_std, score_std),
            "rounds_mean": Figure(rounds, rounds_std),
        }
        entry = next((entry for entry, name in paper.ENTRIES.items() if name == enhancer), RAW)
        arm = arms.of_table1(enhancer, validator)
        rows.append(TableRow((enhancer, validator), entry, arm.name, figures))
    columns = (Column("fid", "FID ↓"), Column("is", "IS ↑"), Column("rounds_mean", "Iteration"))
    return Layout(1, "Stage 1: prompt enhancers and validators", ("Prompt enhancer", "Validator"), columns, tuple(rows))


def table2() -> Layout:
    """Two rows by one experiment."""
    rows = []
    ours = (arms.base(), arms.finetuned())
    for arm, (model, fid, score, score_std, contrast, brightness) in zip(ours, paper.STAGE2, strict=True):
        figures = {
            "fid": Figure(fid),
            "is": Figure(score, score_std, score_std),
            "contrast": Figure(contrast),
            "brightness": Figure(brightness),
        }
        rows.append(TableRow((model,), FINETUNED, arm.name, figures))
    columns = (
        Column("fid", "FID ↓"),
        Column("is", "IS ↑"),
        Column("contrast", "Contrast ↓"),
        Column("brightness", "Brightness ↓"),
    )
    return Layout(2, "Stage 2: fine-tuning for a preference", ("Model",), columns, tuple(rows))


LAYOUTS = {"table1": table1, "table2": table2}
