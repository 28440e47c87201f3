"""How a stage ends when something is wrong: one clear line, a status that is not 0, and no traceback."""

import errno

import pytest

from t2i_feedback import stages
from t2i_feedback.errors import UserError
from t2i_feedback.records import EpochRow
from t2i_feedback.stages import finetune, generate, validate


def ending(error: BaseException):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        stages.run(main)
    return ended.value.code


def test_what_the_user_can_mend_is_one_line():
    assert str(ending(UserError("model.name: no such folder"))).endswith("model.name: no such folder")


def test_a_full_disk_says_how_to_go_on():
    assert "no disk space is left" in str(ending(OSError(errno.ENOSPC, "No space left on device")))


def test_another_system_error_is_not_hidden():
    def main() -> None:
        raise PermissionError("denied")

    with pytest.raises(PermissionError):
        stages.run(main)


def test_an_interrupted_stage_says_that_its_work_is_kept(capsys):
    assert ending(KeyboardInterrupt()) == 130
    assert "what was done is kept" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [generate, validate])
def test_an_unknown_arm_is_named_with_the_known_ones(stage):
    with pytest.raises(UserError, match=r"which arm\? one of .*, not 'rwa'"):
        stage.main("rwa")


def test_the_share_of_scores_that_were_masked_stands_beside_the_rewards():
    zeros = dict.fromkeys(EpochRow.model_fields, 0.0)
    epochs = [
        EpochRow(**zeros | {"epoch": i, "asked": 8, "masked": masked, "parts": {}}) for i, masked in ((1, 3), (2, 1))
    ]
    found = finetune.summary(epochs)
    assert (found["masked"], found["invalid_judge"]) == (4, 4 / 16)
