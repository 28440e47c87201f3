"""How much work a run is, stage by stage, by its parameters: what is drawn, trained on, looked at and asked."""

from dataclasses import dataclass
from typing import Literal

from t2i_feedback import arms
from t2i_feedback.arms import Arm
from t2i_feedback.calibration.claims import ASKED_AGAIN, OTHERS
from t2i_feedback.foundation.traits import TRAITS
from t2i_feedback.mllm import wording
from t2i_feedback.params import Params
from t2i_feedback.rewards import registry
from t2i_feedback.tools.estimate.figures import Common, Throughputs, mllm

Role = Literal["enhancer", "validator", "judge", "held-out judge"]
Kind = Literal["question", "remark", "prompt"]  # yes/no or a score; a sentence on an image; a text about a text


@dataclass(frozen=True)
class Asked:
    """Questions of one kind to one entry of the catalogue."""

    role: Role
    mllm: str
    kind: Kind
    count: float


@dataclass(frozen=True)
class Work:
    """What a stage does. Counts of a mean are not whole."""

    stage: str
    images: float = 0  # drawn
    transitions: float = 0  # trained on
    features: float = 0  # images seen by the extractor
    resamples: int = 0  # FIDs for the interval
    asked: tuple[Asked, ...] = ()


def reference(p: Params) -> Work:
    return Work("reference", features=p.data.reference_images)


def calibrate(p: Params) -> Work:
    """Every image at every level of every trait, two of each again, and in other words."""
    images, found = p.calibrate.images, []
    judges: dict[str, Role] = {p.finetune.judge: "judge", p.evaluate.judge: "held-out judge"}
    for name, role in judges.items():
        again = 1 + len(wording.paraphrases(p.mllms[name].templates, "judge"))
        found.append(Asked(role, name, "question", images * (len(TRAITS) * p.calibrate.levels + 2 * again)))
    return Work("calibrate", asked=tuple(found))


def calibrate_validator(p: Params, common: Common) -> Work:
    """True and altered captions of every image, two of each again, and in other words."""
    entry = p.mllms[p.stage1.mllm]
    words = "question" if p.stage1.questions else "validate"
    claims = common.claims.value if p.data.source == "postcards" else 1 + OTHERS
    again = 1 + len(wording.paraphrases(entry.templates, words))
    images = p.calibrate.images * (claims + min(claims, ASKED_AGAIN) * again)
    return Work("calibrate_validator", asked=_validated(p, common, images, p.calibrate.images * claims))


def enhance(p: Params) -> Work:
    return Work("enhance", asked=(Asked("enhancer", p.stage1.mllm, "prompt", p.data.evaluation_captions),))


def drawn(p: Params, figures: Throughputs, arm: Arm) -> Work:
    """An arm's images. Those of round 1 may be another arm's, and then the ledger may have their verdicts."""
    captions, asked = p.data.evaluation_captions, mllm(figures, p.stage1.mllm)
    if not arm.draws_several:
        return Work(f"generate@{arm.name}", images=captions)
    figure = (asked.rounds_combined if arm.adapter else None) or asked.rounds
    rounds = min(figure.value, p.stage1.max_rounds)
    later = captions * (rounds - 1)
    if not arm.has_rounds:  # the arm that it is a control of has asked about round 1
        return Work(arm.name, images=later, asked=_validated(p, figures.common, later, 0))
    questions = _validated(p, figures.common, captions * rounds, 0 if arm.adapter else captions)
    if p.stage1.feedback and later:
        questions += (Asked("enhancer", p.stage1.mllm, "prompt", later),)
        if not p.stage1.questions:  # item by item, the verdict itself says what is missing
            questions += (Asked("validator", p.stage1.mllm, "remark", later),)
    return Work(f"validate@{arm.name}", images=later if arm.begins_as else captions * rounds, asked=questions)


def finetune(p: Params) -> Work:
    """Each epoch: a rollout, its scores by both judges, and `inner_epochs` passes over its transitions.

    At most: steps with less noise than `min_sigma` are counted, since which they are only the scheduler knows.
    """
    config = p.finetune
    images = config.epochs * config.images_per_epoch
    steps = config.steps_of(p.model.steps)
    trained = max(1, round(min(config.noise.window or steps, steps) * config.timestep_share))
    asked = [Asked("held-out judge", p.evaluate.judge, "question", images)]
    answers = config.epochs * config.answers_per_epoch
    asked += [Asked(role, config.judge, "question", answers) for role in registry.questions(config.reward, config.user)]
    if config.enhance_prompts:
        asked.append(Asked("enhancer", config.judge, "prompt", p.data.finetune_captions))
    return Work("finetune", images, images * config.inner_epochs * trained, asked=tuple(asked))


def evaluate(p: Params, common: Common, arm: Arm) -> Work:
    """Features and both judges' scores of an arm's images. Verdicts on what the loop drew are in the ledger."""
    captions = p.data.evaluation_captions
    asked: tuple[Asked, ...] = (
        Asked("judge", p.finetune.judge, "question", captions),
        Asked("held-out judge", p.evaluate.judge, "question", captions),
    )
    if not arm.draws_several and arm.prompts == "captions":  # nobody has validated its images yet
        asked += _validated(p, common, captions, 0)
    if p.evaluate.vqa_score:
        asked += (Asked("validator", p.evaluate.vqa_mllm, "question", captions),)
    if p.evaluate.questions and not p.stage1.questions:
        asked += (Asked("validator", p.stage1.mllm, "question", captions * common.items.value),)
    return Work(f"evaluate@{arm.name}", features=captions, resamples=p.evaluate.resamples, asked=asked)


def work(p: Params, figures: Throughputs) -> list[Work]:
    """Every stage that does more than read and write files, in the order of dvc.yaml."""
    common = figures.common
    made = {arm.name: drawn(p, figures, arm) for arm in arms.ARMS}
    return [
        Work("data"),
        reference(p),
        calibrate(p),
        calibrate_validator(p, common),
        enhance(p),
        *(made[arm.name] for arm in arms.ARMS if not arm.adapter),
        finetune(p),
        *(made[arm.name] for arm in arms.ARMS if arm.adapter),
        *(evaluate(p, common, arm) for arm in arms.ARMS),
        Work("report"),
    ]


def _validated(p: Params, common: Common, images: float, captions: float) -> tuple[Asked, ...]:
    """Verdicts on images; item by item with the lists of items of captions not seen before. None of a text model."""
    name = p.stage1.mllm
    if not p.mllms[name].images or not images:
        return ()
    if not p.stage1.questions:
        return (Asked("validator", name, "question", images),)
    items = Asked("validator", name, "question", images * common.items.value)
    return (Asked("validator", name, "prompt", captions), items) if captions else (items,)
