"""The roles that a model plays: enhancer, validator and judge. Each words its requests and reads the replies."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image

from t2i_feedback.errors import UserError
from t2i_feedback.mllm.base import Mllm, Outcome, Reply, Request
from t2i_feedback.records import Status

TEMPLATES = Path(__file__).parent / "templates"
SCORES = tuple(str(score) for score in range(1, 11))
REMARK_TOKENS = 48  # feedback and descriptions are one sentence

_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i can ?not|i can['’]t|i['’]m (unable|not able)|i am (unable|not able)|"
    r"as an ai|unfortunately,? i)\b",
    re.IGNORECASE,
)
_COURTESY = re.compile(r"^(sure|certainly|of course|absolutely|okay|ok|great)\b( thing)?\s*[!,.:]\s*", re.IGNORECASE)
_ANNOUNCEMENT = re.compile(
    r"^here(['’]s| is| are)\b[^:\n]{0,120}\b(prompt|description|caption)\b[^:\n]{0,80}:\s*", re.IGNORECASE
)
_LABEL = re.compile(r"^([a-z]+ ){0,2}(prompt|description)\s*:\s*", re.IGNORECASE)
_LIST_MARKER = re.compile(r"^\s*([-*•]|\d{1,2}[.)])\s+", re.MULTILINE)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("`", "`"))
_SCORE = re.compile(  # a number that is no date, range, ordinal or negative, and what it is out of
    r"(?<![\d.,/–-])(\d+(?:\.\d+)?)(?!\d|\s*[–-]\s*\d|\s*(?:st|nd|rd|th)\b)(?:\s*(?:/|out of)\s*(\d+))?", re.IGNORECASE
)


@dataclass(frozen=True)
class Verdict:
    """What a validator said of a picture. `p_yes` = P(yes) / (P(yes) + P(no)), None unless the status is valid."""

    status: Status
    p_yes: float | None
    raw: str


class Typed(Protocol):
    """Whatever has a status and the answer it was read from: a Verdict or an Outcome."""

    @property
    def status(self) -> Status: ...

    @property
    def raw(self) -> str: ...


@lru_cache
def _template(templates: str, name: str) -> str:
    return (TEMPLATES / templates / f"{name}.txt").read_text(encoding="utf-8").strip()


def render(templates: str, name: str, **values: str) -> str:
    """A template with its {words} replaced in one pass: braces in a caption stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda match: " ".join(values[match[1]].split()), _template(templates, name))


def enhance(
    mllm: Mllm, prompts: Sequence[str], feedback: Sequence[str | None] | None = None, sample: int = 0
) -> list[Outcome[str]]:
    """Detailed prompts for short ones; `feedback` (one per prompt, None = first round) is what the validator missed."""
    requests = [
        Request(render(mllm.templates, "enhance_again", prompt=prompt, feedback=remark), None, sample, "enhance")
        if remark
        else Request(render(mllm.templates, "enhance", prompt=prompt), None, sample, "enhance")
        for prompt, remark in zip(prompts, feedback or [None] * len(prompts), strict=True)
    ]
    return [_text_outcome(reply) for reply in mllm.generate(requests)]


def validate(mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int = 0) -> list[Verdict]:
    """Does each picture show its caption?"""
    requests = [
        Request(render(mllm.templates, "validate", caption=caption), image, sample, "validate")
        for image, caption in zip(images, captions, strict=True)
    ]
    return [_verdict(reply) for reply in mllm.choose(requests, ("yes", "no"))]


def explain(mllm: Mllm, images: Sequence[Image.Image], captions: Sequence[str], sample: int = 0) -> list[Outcome[str]]:
    """The validator's feedback: what each picture misses of its caption."""
    requests = [
        Request(render(mllm.templates, "feedback", caption=caption), image, sample, "feedback")
        for image, caption in zip(images, captions, strict=True)
    ]
    return [_text_outcome(reply) for reply in mllm.generate(requests, REMARK_TOKENS)]


def score_preference(
    mllm: Mllm, images: Sequence[Image.Image], preference: str, sample: int = 0
) -> list[Outcome[float]]:
    """A judge's score of each picture, 1..10: expected over the answer's probabilities, or the integer it wrote."""
    text = render(mllm.templates, "judge", preference=preference)
    replies = mllm.choose([Request(text, image, sample, "judge") for image in images], SCORES)
    return [_score(reply) for reply in replies]


def describe(mllm: Mllm, images: Sequence[Image.Image], sample: int = 0) -> list[Outcome[str]]:
    """A sentence about each picture."""
    text = render(mllm.templates, "describe")
    requests = [Request(text, image, sample, "describe") for image in images]
    return [_text_outcome(reply) for reply in mllm.generate(requests, REMARK_TOKENS)]


def check_invalid(outcomes: Sequence[Typed], limit: float, what: str) -> None:
    """Raise UserError, with the three most frequent raw answers, when a larger share than `limit` is not valid."""
    masked = [outcome for outcome in outcomes if outcome.status != "valid"]
    if not masked or len(masked) <= limit * len(outcomes):
        return
    kinds = ", ".join(f"{count} {status}" for status, count in Counter(o.status for o in masked).most_common())
    raws = Counter(" ".join(outcome.raw.split())[:80] for outcome in masked).most_common(3)
    raise UserError(
        f"{what}: {len(masked)} of {len(outcomes)} answers are not valid ({kinds}), more than max_invalid_fraction = "
        f"{limit:g} allows. Most frequent: " + "; ".join(f"{raw!r} ({count}x)" for raw, count in raws)
    )


# ------------------------------------------------------------------------------------------------ readings


def clean_prompt(text: str) -> str:
    """A model's answer without courtesies ("Sure! Here is ...:"), labels, list markers and quotes, on one line."""
    text = text.replace("**", "").strip()
    for preamble in (_COURTESY, _ANNOUNCEMENT, _LABEL):
        text = preamble.sub("", text).strip()
    text = " ".join(_LIST_MARKER.sub("", text).split())
    for opening, closing in _QUOTES:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > len(opening) and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner.strip()
    return _LABEL.sub("", text)


def parse_yes(text: str) -> bool | None:
    """True for yes, False for no; None when the answer is neither or both."""
    words = re.findall(r"[a-z]+", text.lower())
    if words[:1] in (["yes"], ["no"]):
        return words[0] == "yes"
    said = {word for word in words if word in ("yes", "no")}
    return said == {"yes"} if len(said) == 1 else None


def parse_score(text: str) -> float | None:
    """The score in "7", "7/10" or "Score: 7"; None when there is none, several that differ, or one out of 1..10."""
    found = {(float(score), top) for score, top in _SCORE.findall(text)}
    marked = {score for score, top in found if top == "10"}
    scores = marked or {score for score, top in found if not top}
    if len(scores) != 1:
        return None
    score = scores.pop()
    return score if 1 <= score <= 10 else None


def _text_outcome(reply: Reply) -> Outcome[str]:
    if reply.status != "valid":
        return Outcome(reply.status, None, reply.text)
    if _REFUSAL.match(reply.text):
        return Outcome("refusal", None, reply.text)
    text = clean_prompt(reply.text)
    return Outcome("valid", text, reply.text) if re.search(r"\w", text) else Outcome("unparseable", None, reply.text)


def _verdict(reply: Reply) -> Verdict:
    if reply.status != "valid":
        return Verdict(reply.status, None, reply.text)
    if reply.probabilities is not None:
        return Verdict("valid", reply.probabilities["yes"], reply.text)
    yes = parse_yes(reply.text)
    if yes is not None:
        return Verdict("valid", float(yes), reply.text)
    return Verdict("refusal" if _REFUSAL.match(reply.text) else "unparseable", None, reply.text)


def _score(reply: Reply) -> Outcome[float]:
    if reply.status != "valid":
        return Outcome(reply.status, None, reply.text)
    if reply.probabilities is not None:
        return Outcome("valid", sum(int(score) * share for score, share in reply.probabilities.items()), reply.text)
    score = parse_score(reply.text)
    if score is not None:
        return Outcome("valid", score, reply.text)
    return Outcome("refusal" if _REFUSAL.match(reply.text) else "unparseable", None, reply.text)
