import os
import signal
import threading

import pytest

from t2i_feedback.tracking.interruptions import Terminated, interruptible, shielded


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_until_what_is_said_to_mlflow_is_said(number: int, raised: type[BaseException]) -> None:
    said = []

    def say() -> None:
        with shielded():
            with shielded():
                os.kill(os.getpid(), number)
                said.append("a word")
            said.append("and the next")

    with interruptible(), pytest.raises(raised):
        say()
    assert said == ["a word", "and the next"]


def test_the_signal_then_has_the_effect_that_it_had_before() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(SystemExit) as ended, interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_hears_no_signals() -> None:
    def enter() -> None:
        with interruptible():
            entered.append(True)

    entered: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered
