"""What a text says: yes or no, a score, a prompt, a list. None where it does not say so plainly; nothing is guessed."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from t2i_feedback.mllm.base import Reply
from t2i_feedback.mllm.replies import without_thinking

SCORES = tuple(str(score) for score in range(1, 11))
YES_NO = ("yes", "no")
_FIELDS: dict[tuple[str, ...], dict] = {  # candidates -> the fields of the JSON that a free answer should be
    YES_NO: {"answer": {"type": "string", "enum": ["yes", "no"]}, "reason": {"type": "string"}},
    SCORES: {"score": {"type": "integer", "minimum": 1, "maximum": 10}},
}
MAX_ITEMS = 12  # of a list; a caption does not state more

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

_YES_OR_NO = re.compile(r"^\W*(yes|no)\s*(?:/|\||\band\b|\bor\b|\s)\s*(yes|no)\b")
_STANDS_ALONE = r"(?!-\w)(?=\s*(?:$|[^\w\s]|\n|(?:it|the|this|that|there|because|i|its|a|an|not)\b))"  # no "no trees"
_FIRST_WORD = re.compile(rf"^\W*(?:(yes)\b|(no)\b{_STANDS_ALONE})")
_LATER_WORD = re.compile(rf"\b(yes|no)\b{_STANDS_ALONE}")
_THE_ANSWER = re.compile(r"\b(?:answer|verdict)(?: is|:)?\W{1,4}(yes|no)\b(?!\s*(?:/|or\b|and\b))")

_NUMBER = (  # that is no date, version, percentage, ordinal, negative number or end of a range
    r"(?<![\w.,/–-])(?<![–-]\s)([0-9]+(?:\.[0-9]+)?)(?![\w%])(?![.,][0-9])"
    r"(?!,?\s*(?:[–-]|to\b|or\b|and\b)\s*(?:maybe |perhaps |even )?[0-9])"
)
_OF_TEN = r"\s*(?:/|out of)\s*10(?![\w%])(?![.,][0-9])"
_NOT_OF = r"(?!\s*(?:/|out of)\s*[0-9])"
_SAID = r"\b(?:score|rating|answer|(?:rate|give)(?: (?:it|this|that|the))?(?: image| picture)?)\b"
_MARKED_SCORES = (
    re.compile(rf"{_NUMBER}{_OF_TEN}", re.IGNORECASE),  # 7/10
    re.compile(  # Score: 7
        rf"{_SAID}(?:\s+(?:is|of|as|at|a|an|would be|be))*[\s:=*_\"']*{_NUMBER}{_NOT_OF}(?!\s*[,;]?\s*[0-9])",
        re.IGNORECASE,
    ),
)
_FIRST_SCORE = re.compile(  # 7. It is dark
    rf"^[\s*_\"'“(\[]*{_NUMBER}{_NOT_OF}(?=[\s*_\"'”)\]]*(?:$|[.,:;!]|\n|because\b|since\b))", re.IGNORECASE
)
_ANY_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def schema(candidates: tuple[str, ...]) -> str:
    """The JSON schema of an answer, for servers that hold a model to one; "" where there is none."""
    fields = _FIELDS.get(candidates)
    if fields is None:
        return ""
    required = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return json.dumps(required)


def is_json(text: str) -> bool:
    return bool(_json(without_thinking(text)))


def refuses(text: str) -> bool:
    return _REFUSAL.match(text) is not None


def typed(reply: Reply, role: str) -> Reply:
    """The reply with the status that its text deserves in that role: a valid reply may be a refusal, or say nothing.

    The model's thinking is taken out of a valid one. Probabilities that were read where it began are not the answer's.
    """
    if reply.status != "valid":
        return reply
    text = without_thinking(reply.text)
    if reply.reading == "probability" and text != reply.text:
        reply = replace(reply, probabilities=None, mass=None, reading="text")
    if reply.probabilities is not None:
        return reply
    plain = {
        "validate": parse_yes(text) is not None,
        "question": parse_yes(text) is not None,
        "vqa": parse_yes(text) is not None,
        "judge": parse_score(text) is not None,
        "questions": bool(parse_items(text)),
    }.get(role, re.search(r"\w", clean_prompt(text)) is not None)
    if plain and not (refuses(text) and role not in ("validate", "question", "vqa", "judge")):
        return replace(reply, text=text)
    return replace(reply, status="refusal" if refuses(text) else "unparseable")


def shares(candidates: tuple[str, ...], text: str) -> dict[str, float] | None:
    """How an answer's one vote goes to the candidates: 7.5 is half a vote for 7 and half for 8."""
    if candidates == YES_NO:
        yes = parse_yes(text)
        return None if yes is None else {"yes" if yes else "no": 1.0}
    score = parse_score(text)
    if score is None:
        return None
    lower = int(score)
    return {str(lower): 1 - (score - lower)} | ({str(lower + 1): score - lower} if score > lower else {})


def pooled(candidates: tuple[str, ...], replies: Sequence[Reply]) -> Reply:
    """One reply of several samples: the candidates' shares among the valid ones; masked when most are not valid."""
    votes = [vote for reply in replies if reply.status == "valid" and (vote := shares(candidates, reply.text))]
    whole = Reply(
        "valid",
        " | ".join(dict.fromkeys(reply.text for reply in replies)),
        tokens_in=sum(reply.tokens_in for reply in replies),
        tokens_out=sum(reply.tokens_out for reply in replies),
        seconds=sum(reply.seconds for reply in replies),
        reading="samples",
    )
    if 2 * len(votes) <= len(replies):
        ((status, _),) = Counter(reply.status for reply in replies if reply.status != "valid").most_common(1)
        return replace(whole, status=status)
    probabilities = {name: sum(vote.get(name, 0.0) for vote in votes) / len(votes) for name in candidates}
    return replace(whole, probabilities=probabilities, mass=len(votes) / len(replies))


# ------------------------------------------------------------------------------------------------ parsers


def clean_prompt(text: str) -> str:
    """A model's answer without courtesies ("Sure! Here is ...:"), labels, list markers and quotes, on one line."""
    text = without_thinking(text).replace("**", "").strip()
    for preamble in (_COURTESY, _ANNOUNCEMENT, _LABEL):
        text = preamble.sub("", text).strip()
    text = _unquoted(" ".join(_LIST_MARKER.sub("", text).split()))
    return _LABEL.sub("", text)


def parse_yes(text: str) -> bool | None:
    """True for yes, False for no; None when the answer is neither or both. "No doubt" is not a no.

    The first word decides, unless the contrary stands by itself later: "Yes, there are no trees" is a yes, "Yes, but
    the house is red, so no" is neither.
    """
    text = without_thinking(text)
    if (fields := _json(text)) is not None:
        said = fields.get("answer")
        return said == "yes" if said in ("yes", "no") else None
    text = text.lower().strip()
    both = _YES_OR_NO.match(text)
    if both and both[1] != both[2]:
        return None
    if first := _FIRST_WORD.match(text):
        word = first[1] or first[2]
        return word == "yes" if set(_LATER_WORD.findall(text, first.end())) <= {word} else None
    answers = set(_THE_ANSWER.findall(text))
    return answers == {"yes"} if len(answers) == 1 else None


def parse_reason(text: str) -> str | None:
    """What stands behind a yes or no."""
    text = without_thinking(text)
    if (fields := _json(text)) is not None:
        said = str(fields.get("reason") or "")
    elif first := _FIRST_WORD.match(text.lower()):
        said = text[first.end() :]
    else:
        said = text
    said = " ".join(said.split()).strip(" .,:;-–—")
    return said if re.search(r"\w", said) else None


def parse_score(text: str) -> float | None:
    """The score in "7", "7/10" or "Score: 7"; None when there is none, several that differ, or one out of 1..10.

    A number that counts something ("3 houses"), a range, an ordinal and a share of anything but ten are no scores, nor
    is the first of several numbers unless it is marked as the score.
    """
    text = without_thinking(text)
    if (fields := _json(text)) is not None:
        said = fields.get("score")
        if isinstance(said, (int, float)) and not isinstance(said, bool) and 1 <= said <= 10:
            return float(said)
        return None
    text = text.strip()
    found = {float(number) for pattern in _MARKED_SCORES for number in pattern.findall(text)}
    first = _FIRST_SCORE.match(text)
    if first and (found or len({float(number) for number in _ANY_NUMBER.findall(text)}) == 1):
        found.add(float(first[1]))
    if len(found) != 1:
        return None
    score = found.pop()
    return score if 1 <= score <= 10 else None


def parse_items(text: str) -> list[str]:
    """The items of a list: one a line, or separated by semicolons, each once.

    None of them when there are more than MAX_ITEMS: the list is no list of what a caption states, and the end of one
    that is would go unchecked.
    """
    lines = re.split(r"[;\n]", without_thinking(text))
    parts = [_LIST_MARKER.sub("", line).replace("**", "").strip().rstrip(".;,") for line in lines]
    items = [_unquoted(" ".join(part.split())) for part in parts]
    found = list(dict.fromkeys(item for item in items if re.search(r"\w", item) and not item.endswith(":")))
    return found if len(found) <= MAX_ITEMS else []


def _unquoted(text: str) -> str:
    for opening, closing in _QUOTES:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > len(opening) and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner.strip()
    return text


def _json(text: str) -> dict | None:
    """The object that an answer is, {} when it is a broken one; None when it is no JSON at all."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
