import pytest

from t2i_feedback.foundation import durations, paths


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.21, "4.2 s"), (59.97, "1 min 00 s"), (200, "3 min 20 s"), (3599.9, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_is_told_in_two_units(seconds, words):
    assert durations.in_words(seconds) == words


def test_a_program_tells_what_it_took_last_time_and_now(capsys):
    with durations.told("validate@combined"):
        pass
    assert capsys.readouterr().out.splitlines() == ["validate@combined: took 0.0 s"]
    with durations.told("validate@combined"):
        pass
    assert capsys.readouterr().out.splitlines()[0] == "validate@combined: took 0.0 s here last time"


def test_a_run_that_failed_does_not_count(capsys):
    with pytest.raises(ValueError, match="no"), durations.told("finetune"):
        raise ValueError("no")
    with durations.told("finetune"):
        pass
    assert "last time" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["", "soon", "nan", "-3", "inf"])
def test_a_damaged_record_is_no_record(capsys, kept):
    (paths.cache() / "durations").mkdir(parents=True)
    (paths.cache() / "durations" / "data").write_text(kept)
    with durations.told("data"):
        pass
    assert capsys.readouterr().out == "data: took 0.0 s\n"
