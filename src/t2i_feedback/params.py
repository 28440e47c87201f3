"""All of params.yaml, every section of it: for stage `check` and for programs that look at a whole set-up.

What a section holds stands beside the code that reads it (PACKAGE/section.py). Here is what sections demand of each
other.
"""

import re
from pathlib import Path

from pydantic import model_validator

from t2i_feedback.calibration.section import Calibrate
from t2i_feedback.datasets.section import Data
from t2i_feedback.evaluation.protocols import PROTOCOLS
from t2i_feedback.evaluation.section import Evaluate
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import params
from t2i_feedback.foundation.params import Section, Seed
from t2i_feedback.image_models.section import Model
from t2i_feedback.loop.section import Stage1
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.section import Catalogue
from t2i_feedback.reporting.section import Report
from t2i_feedback.rewards import registry

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_of_hub(checkpoint: str) -> bool:
    """Whether it is no path here: neither there, nor in a folder that is, nor of a form that the hub does not have."""
    path = Path(checkpoint)
    beside = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    return not path.exists() and not beside and path.suffix != ".gguf" and bool(_HUB_NAME.fullmatch(checkpoint))


class Params(Section):
    seed: Seed
    data: Data
    model: Model
    mllms: Catalogue
    stage1: Stage1
    calibrate: Calibrate
    finetune: Finetune
    evaluate: Evaluate
    report: Report

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        problems = []
        for key, name in (
            ("stage1.mllm", self.stage1.mllm),
            ("finetune.judge", self.finetune.judge),
            ("evaluate.judge", self.evaluate.judge),
            ("evaluate.vqa_mllm", self.evaluate.vqa_mllm),
        ):
            if name not in self.mllms:
                problems.append(
                    f"{key}: no entry of mllms is called {name!r}; there are {', '.join(sorted(self.mllms))}"
                )
            elif key != "stage1.mllm" and not self.mllms[name].images:
                problems.append(f"{key}: mllms.{name} reads text alone (images: false) and can judge no image")
        validator = self.mllms.get(self.stage1.mllm)
        if self.evaluate.questions and validator is not None and not validator.images:
            problems.append(
                f"evaluate.questions: they are the validator's, and mllms.{self.stage1.mllm} (stage1.mllm) reads text "
                "alone (images: false)"
            )
        if self.finetune.judge == self.evaluate.judge:
            problems.append(
                f"evaluate.judge: {self.evaluate.judge} is finetune.judge too; the held-out judge must be another entry"
            )
        if self.finetune.prompts_per_epoch > self.data.finetune_captions:
            problems.append(
                f"finetune.prompts_per_epoch: {self.finetune.prompts_per_epoch} prompts cannot be drawn from "
                f"data.finetune_captions = {self.data.finetune_captions}"
            )
        problems += registry.problems(self.finetune.reward, self.finetune.user)
        if self.evaluate.kid_subset > self.data.evaluation_captions:
            problems.append(
                f"evaluate.kid_subset: {self.evaluate.kid_subset} is more than data.evaluation_captions = "
                f"{self.data.evaluation_captions}"
            )
        for key, least in (("splits", self.evaluate.splits), ("neighbourhood", self.evaluate.neighbourhood + 1)):
            if least > self.data.evaluation_captions:
                count = self.data.evaluation_captions
                problems.append(f"evaluate.{key}: {getattr(self.evaluate, key)} is too many for {count} images")
        problems += [*self._code_not_pinned(), *self._broken_demands()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def warnings(self) -> list[str]:
        """What will run, and not as one may expect."""
        roles = {"stage1.mllm": self.stage1.mllm, "finetune.judge": self.finetune.judge}
        roles |= {"evaluate.judge": self.evaluate.judge}
        blind = [key for key, name in roles.items() if self.mllms[name].templates == "postcards"]
        found = []
        own, arms = self.finetune.guidance, self.model.guidance
        if own not in (None, arms) and not self.model.name.startswith("models/postcards/"):
            found.append(
                f"finetune.guidance {own:g}: training draws otherwise than the arms, at model.guidance {arms:g}; that "
                "was tried with the shipped models alone, and null draws alike"
            )
        if self.data.source == "postcards" or not blind:
            return found
        return [
            *found,
            f"{', '.join(blind)}: the shipped models know drawn postcards alone and cannot see the images of "
            f"data.source {self.data.source}; choose models that can see photographs (docs/judges.md)",
        ]

    def _code_not_pinned(self) -> list[str]:
        """One line for each entry that would run whatever code a hub's repository holds on that day."""
        return [
            f"mllms.{name}.revision: {entry.revision!r} moves, and trust_remote_code runs the repository's code; name "
            "the commit that you have read, all 40 digits"
            for name, entry in self.mllms.items()
            if isinstance(entry, LocalEntry)
            and entry.trust_remote_code
            and is_of_hub(entry.model)
            and not re.fullmatch("[0-9a-f]{40}", entry.revision)
        ]

    def _broken_demands(self) -> list[str]:
        """One line for each key that is not what the named protocol demands."""
        problems = []
        for key, needed in PROTOCOLS[self.evaluate.protocol].items():
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value != needed:
                needed, value = ("null" if x is None else x for x in (needed, value))
                problems.append(f"{key}: evaluate.protocol {self.evaluate.protocol} needs {needed}, not {value}")
        return problems


def load(*path: Path) -> Params:
    """Read and check params.yaml, or the file at `path`. Raises UserError that lists every problem with its key."""
    return params.load(Params, *path)


def check(raw: object, source: str) -> Params:
    """Type what a YAML file held. Raises UserError that lists every problem of `source` with its key."""
    return params.check(Params, raw, source)
