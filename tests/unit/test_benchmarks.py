"""What the benchmark of the judges says of a model whose answers are known."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from t2i_feedback import params
from t2i_feedback.mllm.base import Reply, Request

REPOSITORY = Path(__file__).parents[2]


class Known:
    """A Mllm that is sure of yes and of 10, but writes no to every fourth question."""

    templates, reading = "postcards", "probability"

    def generate(self, requests: Sequence[Request], max_new_tokens: int | None = None) -> list[Reply]:
        yes, no = ("yes", "no") if requests[0].role == "validate" else ("10", "1")
        return [Reply("valid", no if i % 4 == 0 else yes) for i in range(len(requests))]

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        sure = "yes" if "yes" in candidates else "10"
        return [Reply("valid", "", {word: float(word == sure) for word in candidates}) for _ in requests]


def test_equal_verdicts_are_those_of_yes_and_no(figures: tuple[dict[str, float], str]) -> None:
    assert figures[0]["equal verdicts"] == 0.75
    assert "75.0% equal verdicts" in figures[1]


def test_the_target_of_reading_stands_beside_one_written_answer_and_no_other(
    figures: tuple[dict[str, float], str],
) -> None:
    lines = [line for line in figures[1].splitlines() if "prefill" in line]
    assert len(lines) == 4
    assert all(("target 3" in line) == ("one written answer" in line) for line in lines)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, float], str]:
    """The figures of reading, and what was printed of them."""
    monkeypatch.chdir(REPOSITORY)
    spec = importlib.util.spec_from_file_location("judges", REPOSITORY / "benchmarks" / "judges.py")
    assert spec and spec.loader
    judges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judges)

    @contextmanager
    def opened(entry: params.LocalEntry) -> Iterator[Known]:
        yield Known()

    monkeypatch.setattr(judges, "opened", opened)
    monkeypatch.setattr(judges, "PICTURES", 8)
    return judges.reading(params.load().mllms["postcards"]), capsys.readouterr().out
