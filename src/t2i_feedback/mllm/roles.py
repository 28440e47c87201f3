"""The roles that a model plays: enhancer, validator and judge. Each words its requests and reads the replies."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import Reading, Status
from t2i_feedback.mllm import readings, wording
from t2i_feedback.mllm.base import Mllm, Outcome, Reply, Request, Typed, Value, most_frequent
from t2i_feedback.mllm.readings import SCORES, YES_NO

REMARK_TOKENS = 48  # feedback is one sentence
VQA_QUESTION = 'Does this figure show "{}"? Please answer yes or no.'  # of VQAScore's definition: no template
PRESENT = 0.5  # an item is there when P(yes) is at least this


@dataclass(frozen=True)
class Verdict:
    """What a validator said of an image. `p_yes` = P(yes) / (P(yes) + P(no)), None unless the status is valid.

    Asked item by item, `p_yes` is the share of the items that are there. `feedback` is what it missed, if it said so.
    """

    status: Status
    p_yes: float | None
    raw: str
    reading: Reading = "text"
    feedback: str | None = None


def enhance(
    mllm: Mllm,
    prompts: Sequence[str],
    feedback: Sequence[str | None] | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[Outcome[str]]:
    """Detailed prompts for short ones; `feedback` (one per prompt, None = first round) is what the validator missed.

    At a temperature above 0 each prompt is drawn from its own of `seeds`.
    """
    count = len(prompts)
    requests = [
        _request(mllm, "enhance", None, seed, "enhance_again", prompt=prompt, feedback=remark)
        if remark
        else _request(mllm, "enhance", None, seed, prompt=prompt)
        for prompt, remark, seed in zip(prompts, feedback or [None] * count, seeds or [0] * count, strict=True)
    ]
    return [_text_outcome(reply) for reply in mllm.generate(requests, temperature=temperature)]


def validate(
    mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int = 0, questions: bool = False
) -> list[Verdict]:
    """Does each image show its caption? One question about all of it, or with `questions` one per item."""
    if questions:
        return _validate_items(mllm, images, captions, sample)
    words = validating_words(mllm, questions)
    requests = [
        _request(mllm, "validate", image, sample, words, caption=caption)
        for image, caption in zip(images, captions, strict=True)
    ]
    return [_verdict(reply) for reply in mllm.choose(requests, YES_NO)]


def validating_words(mllm: Mllm, questions: bool) -> str:
    """The template in which `validate` asks about an image."""
    if questions:
        return "question"
    return "validate_with_reason" if mllm.reading == "text" else "validate"


def explain(mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int = 0) -> list[Outcome[str]]:
    """The validator's feedback: what each image misses of its caption."""
    requests = [
        _request(mllm, "feedback", image, sample, caption=caption)
        for image, caption in zip(images, captions, strict=True)
    ]
    return [_text_outcome(reply) for reply in mllm.generate(requests, REMARK_TOKENS)]


def score_preference(
    mllm: Mllm, images: Sequence[Image.Image], preference: str, sample: int = 0
) -> list[Outcome[float]]:
    """A judge's score of each image, 1..10: expected over the answer's probabilities, or the number it wrote.

    Raises UserError when the preference does not fit into the model's context.
    """
    requests = [_request(mllm, "judge", image, sample, preference=preference) for image in images]
    replies = mllm.choose(requests, SCORES)
    if replies and all(reply.status == "truncated" and not reply.tokens_out for reply in replies):
        raise UserError(
            f"finetune.preference: {len(preference.split())} words are more than the judge can take in with an image; "
            f"shorten it or choose another judge ({replies[0].text[:160]})"
        )
    return [_score(reply) for reply in replies]


def vqa_score(
    mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int = 0
) -> list[Outcome[float]]:
    """VQAScore of each image and its caption: P(yes) as the answer to whether it shows it, 0..1.

    Lin et al., "Evaluating Text-to-Visual Generation with Image-to-Text Generation" (2024), with the question of their
    code. P(yes) is a probability among all answers; of a model that only writes or samples, the share that says yes.
    """
    requests = [
        Request(VQA_QUESTION.format(" ".join(caption.split())), image, sample, "vqa")
        for image, caption in zip(images, captions, strict=True)
    ]
    return [_vqa(reply) for reply in mllm.choose(requests, YES_NO)]


def check_invalid(outcomes: Sequence[Typed], limit: float, what: str) -> None:
    """Raise UserError, with the three most frequent raw answers, when a larger share than `limit` is not valid."""
    masked = [outcome for outcome in outcomes if outcome.status != "valid"]
    if not masked or len(masked) <= limit * len(outcomes):
        return
    raise UserError(
        f"{what}: {len(masked)} of {len(outcomes)} answers are not valid, more than max_invalid_fraction = {limit:g} "
        f"allows{most_frequent(masked)}"
    )


def readings_used(outcomes: Sequence[Typed]) -> str:
    """How the valid answers were read: `probability`, or with counts where they differ: `samples 250, text 6`."""
    counts = Counter(outcome.reading for outcome in outcomes if outcome.status == "valid")
    if len(counts) < 2:
        return next(iter(counts), "none is valid")
    return ", ".join(f"{reading} {count}" for reading, count in counts.most_common())


# ------------------------------------------------------------------------------------------------ asking


def _request(
    mllm: Mllm, role: str, image: Image.Image | None, sample: int, words: str | None = None, **values: str
) -> Request:
    """The role's question in the words of its template (or of another, `words`)."""
    words = words or role
    text = wording.render(mllm.templates, words, **values)
    return Request(text, image, sample, role, wording.digest(mllm.templates, words))


def _validate_items(mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int) -> list[Verdict]:
    """Two askings: what a caption states, once per caption, and whether each image shows each item of its caption."""
    known = list(dict.fromkeys(captions))
    replies = mllm.generate([_request(mllm, "questions", None, sample, caption=caption) for caption in known])
    lists = {caption: readings.typed(reply, "questions") for caption, reply in zip(known, replies, strict=True)}
    items = {
        caption: readings.parse_items(reply.text) if reply.status == "valid" else [] for caption, reply in lists.items()
    }
    requests = [
        _request(mllm, "question", image, sample, item=item)
        for image, caption in zip(images, captions, strict=True)
        for item in items[caption]
    ]
    answers = iter(mllm.choose(requests, YES_NO) if requests else [])
    verdicts = []
    for caption in captions:
        if lists[caption].status == "valid":
            verdicts.append(_item_verdict(mllm, items[caption], [_verdict(next(answers)) for _ in items[caption]]))
        else:
            verdicts.append(Verdict(lists[caption].status, None, lists[caption].text))
    return verdicts


def _item_verdict(mllm: Mllm, items: list[str], answers: list[Verdict]) -> Verdict:
    """The share of the items that are there; masked when one answer is not valid. Feedback names what is not there."""
    failed = next((answer for answer in answers if answer.p_yes is None), None)
    if failed:
        return Verdict(failed.status, None, failed.raw, failed.reading)
    missing = [item for item, a in zip(items, answers, strict=True) if a.p_yes is not None and a.p_yes < PRESENT]
    raw = "; ".join(f"{item} {answer.p_yes:.2f}" for item, answer in zip(items, answers, strict=True))
    bare = "; ".join(re.sub(r"^an? ", "", item) for item in missing)
    feedback = wording.render(mllm.templates, "missing", items=bare) if missing else None
    return Verdict("valid", 1 - len(missing) / len(items), raw, answers[0].reading, feedback)


# ------------------------------------------------------------------------------------------------ reading


def _text_outcome(reply: Reply) -> Outcome[str]:
    reply = readings.typed(reply, "enhance")
    return _outcome(reply, readings.clean_prompt(reply.text) if reply.status == "valid" else None)


def _verdict(reply: Reply) -> Verdict:
    reply = readings.typed(reply, "validate")
    if reply.status != "valid":
        return Verdict(reply.status, None, reply.text, reply.reading)
    if reply.probabilities is not None:
        return Verdict("valid", reply.probabilities["yes"], reply.text, reply.reading)
    yes = bool(readings.parse_yes(reply.text))
    feedback = None if yes else readings.parse_reason(reply.text)
    return Verdict("valid", float(yes), reply.text, reply.reading, feedback)


def _vqa(reply: Reply) -> Outcome[float]:
    verdict = _verdict(reply)
    share = verdict.p_yes
    if share is not None and reply.reading == "probability" and reply.mass is not None:
        share *= reply.mass  # of yes and no together, before they were made to sum to 1
    return Outcome(verdict.status, share, verdict.raw, verdict.reading)


def _score(reply: Reply) -> Outcome[float]:
    reply = readings.typed(reply, "judge")
    if reply.status != "valid":
        return _outcome(reply, None)
    if reply.probabilities is not None:
        return _outcome(reply, sum(int(score) * share for score, share in reply.probabilities.items()))
    return _outcome(reply, readings.parse_score(reply.text))


def _outcome(reply: Reply, value: Value | None) -> Outcome[Value]:
    return Outcome(reply.status, value, reply.text, reply.reading)
