"""Replies made whole: the one step between what a server, a checkpoint or the ledger gives and whoever reads it.

After it a reply's text can be encoded, its numbers are finite, and what could not be made whole is a typed failure.
Thinking is taken out wherever a model put it: it is never an answer.
"""

import math
import re
from dataclasses import replace
from typing import Any

from t2i_feedback.mllm.base import NOT_FINITE, Reply

MOST_TOKENS = 10**9  # no reply has more; a larger count is none
ROUNDING = 1e-3  # by which a probability may leave 0..1

_WORD = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|analysis|reflection|scratchpad)"
_OPENING = rf"(?:<\s*\|?{_WORD}\|?(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<unused94>)"
_CLOSING = rf"(?:<\s*\|?/\s*{_WORD}\|?\s*>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<unused95>)"
THINKING_TAG = re.compile(rf"{_OPENING}|{_CLOSING}|<\|channel\|>", re.IGNORECASE)
THINKING_ENDS = re.compile(_CLOSING, re.IGNORECASE)
_THINKING = re.compile(rf"{_OPENING}.*?{_CLOSING}\s*", re.IGNORECASE | re.DOTALL)
_TO_THE_LAST_END = re.compile(rf"\A.*{_CLOSING}\s*", re.IGNORECASE | re.DOTALL)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\||\Z)", re.DOTALL)  # of gpt-oss
_BARE_CHANNELS = re.compile(r"\Aanalysis\S.*?assistant\s*final(?=[^a-z])", re.DOTALL)  # its marks taken out
_WRAPPED = (  # where a model was taught to put its answer
    re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL),
    re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL),
    re.compile(r"\A\W*(?:the answer is\W*)?\\boxed\{([^{}]*)\}\W*\Z", re.IGNORECASE),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def whole(reply: Reply) -> Reply:
    """The reply with text that can be encoded and numbers that are numbers; unparseable where a probability is none."""
    reply = replace(
        reply,
        text=clean(reply.text),
        tokens_in=count(reply.tokens_in) or 0,
        tokens_out=count(reply.tokens_out) or 0,
        tokens_thinking=count(reply.tokens_thinking) or 0,
        seconds=number(reply.seconds) or 0.0,
    )
    if reply.probabilities is None:
        return reply if reply.mass is None else replace(reply, mass=number(reply.mass))
    shares = {name: number(share) for name, share in reply.probabilities.items()}
    known = [share for share in shares.values() if share is not None and -ROUNDING <= share <= 1 + ROUNDING]
    if len(known) < len(shares) or (reply.mass is not None and number(reply.mass) is None):
        text = reply.text if reply.text.startswith(NOT_FINITE) else f"{NOT_FINITE}; it said: {reply.text}"
        return replace(reply, status="unparseable", text=text, probabilities=None, mass=None)
    return reply


def clean(text: object) -> str:
    """Text that any tokenizer and file takes: no half of a surrogate pair and no control characters but line breaks."""
    if not isinstance(text, str):
        return ""
    return _CONTROL.sub("", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int | None:
    """How many of something: a whole number from 0 on, also as text; None for anything else."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 12:
        value = int(value)
    found = number(value)
    return int(found) if found is not None and 0 <= found <= MOST_TOKENS else None


def joined(content: Any) -> tuple[str, str] | None:
    """A message's content, text or a list of parts, as (answer, thinking); None when it is no text at all."""
    if content is None or isinstance(content, str):
        return clean(content), ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None
    answer: list[str] = []
    thinking: list[str] = []
    for part in content:
        kind = str(part.get("type", "text")) if isinstance(part, dict) else "text"
        thinks = "think" in kind or "reason" in kind
        text = part if isinstance(part, str) else _part_text(part, kind)
        if text is not None:
            (thinking if thinks else answer).append(clean(text))
    return None if content and not answer and not thinking else ("".join(answer), "".join(thinking))


def _part_text(part: Any, kind: str) -> str | None:
    if not isinstance(part, dict):
        return None
    for key in ("text", "content", kind, "thinking", "reasoning", "summary"):
        inner = part.get(key)
        if isinstance(inner, dict):
            inner = inner.get("value", inner.get("text"))
        if isinstance(inner, str):
            return inner
        if isinstance(inner, list):
            return "".join(filter(None, (one if isinstance(one, str) else _part_text(one, "text") for one in inner)))
    return None


def without_thinking(text: str) -> str:
    """The answer in a text, without what a model writes between tags of thinking and around its answer.

    Before a closing tag alone all is thinking: the opening one stood in the chat template. With an opening tag that is
    never closed nothing is left: the answer would have come after it.
    """
    channels = _CHANNEL.findall(text)
    if channels:
        finals = [said for name, said in channels if name.lower() == "final"]
        return without_thinking(finals[-1].strip()) if finals else ""
    text = _BARE_CHANNELS.sub("", text)
    text = _TO_THE_LAST_END.sub("", _THINKING.sub("", text))
    if THINKING_TAG.search(text):
        return ""
    for wrapper in _WRAPPED:
        if found := wrapper.findall(text):
            return without_thinking(found[-1].strip())
    return text
