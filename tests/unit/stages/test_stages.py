"""How a stage ends when something is wrong: one clear line, a status that is not 0, and no traceback."""

import errno

import pytest
import tiny_diffusion
import yaml

from t2i_feedback.finetuning import progress
from t2i_feedback.foundation import paths, running
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import CaptionRow, EpochRow, write_rows
from t2i_feedback.stages import generate, validate
from t2i_feedback.tools import preflight


def ending(error: BaseException):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        running.run(main)
    return ended.value.code


def test_what_the_user_can_mend_is_one_line():
    assert str(ending(UserError("model.name: no such folder"))).endswith("model.name: no such folder")


def test_a_full_disk_says_how_to_go_on():
    assert "no disk space is left" in str(ending(OSError(errno.ENOSPC, "No space left on device")))


def test_another_system_error_is_not_hidden():
    def main() -> None:
        raise PermissionError("denied")

    with pytest.raises(PermissionError):
        running.run(main)


def test_an_interrupted_stage_says_that_its_work_is_kept(capsys):
    assert ending(KeyboardInterrupt()) == 130
    assert "what was done is kept" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [generate, validate])
def test_an_unknown_arm_is_named_with_the_known_ones(stage):
    with pytest.raises(UserError, match=r"which arm\? \w+ knows \w+, .*, not 'rwa'"):
        stage.main("rwa")


def test_the_share_of_scores_that_were_masked_stands_beside_the_rewards():
    zeros = dict.fromkeys(EpochRow.model_fields, 0.0)
    epochs = [
        EpochRow(**zeros | {"epoch": i, "asked": 8, "masked": masked, "parts": {}}) for i, masked in ((1, 3), (2, 1))
    ]
    found = progress.summary(epochs, learnt=2)
    assert (found["masked"], found["invalid_judge"]) == (4, 4 / 16)


def test_preflight_looks_at_what_finetune_would_train_whatever_draws_the_arms(tmp_path, monkeypatch, capsys):
    """Fine-tuning samples with DDIM even where the arms are drawn with another scheduler."""
    raw = yaml.safe_load(paths.PARAMS.read_text(encoding="utf-8"))
    tiny_diffusion.pipeline(tmp_path / "tokenizer_files").save_pretrained(tmp_path / "sd")
    raw["model"] |= tiny_diffusion.model(name=str(tmp_path / "sd"), scheduler="euler").model_dump()
    raw["finetune"] |= {"lora_targets": ["to_q"]}
    monkeypatch.chdir(tmp_path)
    paths.PARAMS.write_text(yaml.safe_dump(raw), encoding="utf-8")
    row = CaptionRow(caption_id=1, image_id=1, caption="a cat", image="images/1.png")
    write_rows(paths.FINETUNE_CAPTIONS, [row])
    preflight.main()
    assert "the importance ratio is 1 within" in capsys.readouterr().out
