"""Who is asked what in fine-tuning, put together from the parameters. Not a stage itself."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from t2i_feedback.finetuning.acquisition import Budget, Scorer
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed, paths, photometry
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import roles
from t2i_feedback.mllm.base import Mllm
from t2i_feedback.rewards import registry
from t2i_feedback.rewards.registry import Reward
from t2i_feedback.rewards.sheet import Sheet

AWAITED = "awaited.txt"  # names of the pictures that a run ended for, in its folder


def feedback(
    config: Finetune, *, size: int, seed: int, judge: Mllm | None, captions: Mapping[str, str], folder: Path
) -> Scorer:
    """The run's scorer. `judge` may be None if not `config.asks_judge`; `captions`: prompt -> its caption."""
    budget = None
    if config.acquisition != "all" and config.feedback_budget:
        budget = Budget(
            config.feedback_budget,
            config.acquisition,
            surrogate_weight=config.surrogate_weight,
            per_prompt=config.advantage == "per_prompt",
            embed=photometry.embeddings,
            seed=seed,
        )
    makers: dict[str, Callable[[], Reward]] = {
        "preference": lambda: user(config, judge, folder, invalid),
        "alignment": lambda: registry.alignment(_present(judge), captions, invalid),
    }
    invalid: list[roles.Typed] = []
    return Scorer(
        {name: makers[name]() if name in makers else registry.PIXELS[name] for name in config.rewards},
        registry.total(config.rewards, size),
        budget=budget,
        overlap=config.overlap_judging,
        divided=config.user != "file",
        describe_invalid=lambda: roles.most_frequent(invalid),
    )


def user(config: Finetune, judge: Mllm | None, folder: Path, invalid: list[roles.Typed]) -> Reward:
    """Whoever has the preference: the judge, whose invalid answers go to the list, photometry, or a person."""
    if config.user == "pixels":
        return registry.oracle(config.preference)
    if config.user == "file":
        return person(sheet(config.preference), folder)
    return registry.preference(_present(judge), config.preference, invalid)


def sheet(preference: str) -> Sheet:
    """The score sheet of a preference: other runs with the same one share what the person said."""
    words = "-".join(re.findall(r"\w+", preference.lower())[:5])[:40]
    return Sheet(paths.feedback() / f"{words}-{hashlib.sha256(preference.encode()).hexdigest()[:8]}", preference)


def person(sheet: Sheet, folder: Path) -> Reward:
    """The scores that a person wrote into the sheet. Raises UserError while some are missing: nobody waits.

    Every process is to ask about the same pictures; the first one writes.
    """

    def reward(images: list[Image.Image], prompts: list[str]) -> list[float | None]:
        if distributed.is_main():
            (folder / AWAITED).write_text("\n".join(sheet.enter(images, prompts)))
        distributed.barrier()  # the others read when it is written
        names = sheet.enter(images, prompts)
        _stop_for(sheet, sheet.open(names))
        lines = sheet.read()
        return [lines[name].score for name in names]

    return reward


def check_answered(sheet: Sheet, folder: Path) -> None:
    """Raises UserError while pictures that the run ended for have no score. It costs no drawing to find out.

    Rows that the sheet has lost are no reason to stop: the run enters them again.
    """
    awaited = folder / AWAITED
    names = awaited.read_text().split() if awaited.exists() else []
    if sheet.read().keys() >= set(names):
        _stop_for(sheet, sheet.open(names))


def _stop_for(sheet: Sheet, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"{len(missing)} images await scores in {sheet.path} (shown in {sheet.page.name} beside it); run again "
            "when done"
        )


def _present(judge: Mllm | None) -> Mllm:
    if judge is None:
        raise ValueError("these rewards ask the judge, and none was given")
    return judge
