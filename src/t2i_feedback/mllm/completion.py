"""Chat completions of the OpenAI protocol: requests and replies, in and out. Nothing is sent from here."""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import MIN_MASS, Decoding, Reply, Request, chosen
from t2i_feedback.mllm.dialects import OLD_NAME, TOP_LOGPROBS
from t2i_feedback.mllm.replies import THINKING_ENDS, clean, count, joined, whole, without_thinking

CHOICE_TOKENS = 16  # room for "Score: 7/10" where the first token is not the answer
CHARACTERS_PER_TOKEN, IMAGE_TOKENS = 3, 1000  # where a server counts none: rather too many than too few
BLANKS = " \t\n\r\u2581\u0120"  # space, and the marks that tokenisers write for it
NOTHING = 1e-20  # a probability that no model means: what a server says of tokens that it had ruled out

# Why an answer ended, in the words of OpenAI, Anthropic, Gemini, Mistral, Cohere, TGI, Together, vLLM, SGLang, Zhipu
_DONE = re.compile(
    r"|stop(?:ped|_\w+)?|eos(?:_\w+)?|end\w*|completed?|finish(?:ed)?|success|normal|done|tool_calls?|function_call|"
    r"null|none",
    re.IGNORECASE,
)
_CUT = re.compile(r"length|max(?:imum)?_?(?:\w*_)?tokens|context", re.IGNORECASE)
_FAILED = re.compile(r"error|fail|abort|cancel|insufficient|overload|time_?out|network", re.IGNORECASE)
_FILTERED = re.compile(
    r"content_?(?:filter|policy)|safety|sensitive|refusal|guardrail|prohibited|blocklist|moderation|recitation|toxic",
    re.IGNORECASE,
)
# What a refused request is told of its content, which no parameter and no key is at fault for
_FLAGGED = re.compile(r"flagged|moderation|(?:usage|content) (?:guidelines?|polic(?:y|ies))", re.IGNORECASE)
_OF_ACCOUNT = re.compile(r"\byour (?:account|organi[sz]ation|team|key)", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _-]?(?:length|window|size)|prompt is too long|input token count", re.IGNORECASE)

Json = Any  # what a server sends: nothing of it is taken on trust


def arguments(entry: EndpointEntry, request: Request, decoding: Decoding, limit: int) -> dict[str, Any]:
    """The body of a request, in the protocol's own words. The image stands first, as open models learnt it.

    `limit`: how many tokens may be written. The entry's extra_body has the last word.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": clean(request.text)}]
    if request.image is not None:
        url = {"url": data_url(request.image)} | ({"detail": entry.image_detail} if entry.image_detail else {})
        content.insert(0, {"type": "image_url", "image_url": url})
    found: dict[str, Any] = {
        "model": entry.model,
        "messages": [{"role": "user", "content": content}],
        OLD_NAME: limit,
        "temperature": decoding.temperature,
        "seed": request.sample,
    }
    if decoding.candidates:
        found |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if decoding.schema:
        form = {"name": "answer", "strict": True, "schema": json.loads(decoding.schema)}
        found["response_format"] = {"type": "json_schema", "json_schema": form}
    if entry.reasoning is not None:
        found["reasoning_effort"] = entry.reasoning
    return found | entry.extra_body


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def parsed(body: str) -> Json:
    """A server's answer; the text itself when it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def read(
    said: Json, request: Request, decoding: Decoding, seconds: float, limit: int, thinking_off: bool = False
) -> Reply:
    """The reply that a server's answer holds, made whole; transport when it is no chat completion.

    Its tokens are the server's count, or an estimate where it gives none: a budget of dollars is to stop all the same.
    With `thinking_off` an answer may stand where thinking would, as some servers then put it there.
    """
    choice = _first(said)
    message = choice.get("message") if choice else None
    found = joined(message.get("content")) if isinstance(message, Mapping) else None
    if choice is None or not isinstance(message, Mapping) or found is None:
        error = said.get("error") if isinstance(said, Mapping) else None
        words = f"not a chat completion: {clean(json.dumps(error or said, ensure_ascii=False, default=str))}"
        paid = [tokens or 0 for tokens in _counted(said)]  # it may have cost something all the same
        return whole(Reply("transport", words, None, None, paid[0], paid[1], paid[2], seconds))
    text, thought = found[0].strip(), found[1]
    for field in ("reasoning_content", "reasoning", "thinking"):
        inner = joined(message.get(field))
        thought = thought or ("".join(inner) if inner else "")
    finish = _finish(choice)
    if thinking_off and not text and thought and _DONE.fullmatch(finish):
        text, thought = thought.strip(), ""
    read_tokens, written, thinking = _counted(said)
    guess = estimated(request, thought + text)
    counts = (guess[0] if read_tokens is None else read_tokens, guess[1] if written is None else written, thinking or 0)
    refusal = clean(message.get("refusal"))
    if _FILTERED.search(finish) or refusal:
        return whole(Reply("refusal", refusal or text, None, None, *counts, seconds))
    if reason := broken_off(said):
        return whole(Reply("transport", reason, None, None, *counts, seconds))
    answer = without_thinking(text)
    thinks = bool(thought) or answer != text
    chances = _chosen(choice, decoding.candidates, answer, thinks)
    if chances is not None:
        return whole(
            replace(chances, tokens_in=counts[0], tokens_out=counts[1], tokens_thinking=counts[2], seconds=seconds)
        )
    # An answer as long as its limit was cut, whatever the server says; where thinking is not counted, nobody can tell.
    if not _CUT.search(finish) and (written is None or written < limit):
        return whole(Reply("valid", text, None, None, *counts, seconds))
    if thinks and not answer:
        advice = "choose reading: text, which has max_new_tokens" if limit == CHOICE_TOKENS else "raise max_new_tokens"
        text = f"thinking used up the limit of {limit} tokens: {advice}: {thought or text}"
    return whole(Reply("truncated", text, None, None, *counts, seconds))


def broken_off(said: Json) -> str:
    """Why the server failed in the midst of its answer, in its words; "" where the answer came to an end of any kind.

    An end that nobody knows is a failure: half an answer that passes for a whole one would be kept for ever.
    """
    choice = _first(said) or {}
    finish, error = _finish(choice), choice.get("error")
    if not error and any((_DONE.fullmatch(finish), _CUT.search(finish), _FILTERED.search(finish))):
        return ""
    told = f": {clean(json.dumps(error, ensure_ascii=False, default=str))}" if error else ""
    return f"the answer broke off ({finish or 'error'}){told}"


def ends_unknown(said: Json) -> str:
    """The `finish_reason` of an answer that is neither an end nor a failure that is known here; "" for all others."""
    choice = _first(said) or {}
    finish = _finish(choice)
    return finish if broken_off(said) and not choice.get("error") and not _FAILED.search(finish) else ""


def fault_of_content(status: int, code: str, words: str) -> Literal["refusal", "truncated"] | None:
    """What it means that a request was refused for what it asks or how long it is; None where that is not why.

    `status` is HTTP's, `code` the protocol's ("" for none). Another request may be answered.
    """
    if _FILTERED.search(code) or (status == 403 and _FLAGGED.search(words) and not _OF_ACCOUNT.search(words)):
        return "refusal"
    return "truncated" if status in (400, 413, 422, 500) and _TOO_LONG.search(f"{code} {words}") else None


def gives_logprobs(said: Json) -> bool:
    """Whether it has probabilities of the tokens that it wrote."""
    return any(alternatives for _, _, alternatives in _tokens(_first(said) or {}))


def degenerate(said: Json) -> bool:
    """Whether the written tokens have all the probability, as of servers that tell what they chose among, at
    temperature 0, and not what the model believed."""
    tokens = [alternatives for _, _, alternatives in _tokens(_first(said) or {}) if alternatives]
    return bool(tokens) and all(len(chances) < 2 or sorted(chances.values())[-2] <= NOTHING for chances in tokens)


def answered_by(said: Json) -> str:
    """The model that the answer names; "" when it names none."""
    return clean(said.get("model")).strip() if isinstance(said, Mapping) else ""


def _first(said: Json) -> Mapping[str, Any] | None:
    choices = said.get("choices") if isinstance(said, Mapping) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else None


def _finish(choice: Mapping[str, Any]) -> str:
    """Why the answer ended; "" where that is not said."""
    return clean(choice.get("finish_reason") or choice.get("native_finish_reason")).strip()


def _counted(said: Json) -> tuple[int | None, int | None, int | None]:
    """Tokens read, written (those of thinking too) and thought, as far as the server counts them."""
    usage = said.get("usage") if isinstance(said, Mapping) else None
    if not isinstance(usage, Mapping):
        return None, None, None
    read_tokens = count(usage.get("prompt_tokens", usage.get("input_tokens")))
    written = count(usage.get("completion_tokens", usage.get("output_tokens")))
    details = usage.get("completion_tokens_details", usage.get("output_tokens_details"))
    thinking = count(details.get("reasoning_tokens")) if isinstance(details, Mapping) else None
    total = count(usage.get("total_tokens"))
    if total is not None and read_tokens is not None and written is not None:
        written = max(written, total - read_tokens)  # some count thinking in the total alone
    return read_tokens, written, thinking


def estimated(request: Request, text: str) -> tuple[int, int]:
    """Tokens read, and written where that is the answer."""
    image = 0 if request.image is None else IMAGE_TOKENS
    read_tokens, written = (math.ceil(len(words) / CHARACTERS_PER_TOKEN) for words in (request.text, text))
    return image + read_tokens, written


# ------------------------------------------------------------------------------------------------ probabilities

Token = tuple[str, float, dict[str, float]]  # as written, its probability, and that of each alternative


def _tokens(choice: Mapping[str, Any]) -> list[Token]:
    """The tokens that were written, with their alternatives; whatever has no such form is left out."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    found: list[Token] = []
    for token in content if isinstance(content, list) else ():
        if not isinstance(token, Mapping) or not isinstance(token.get("token"), str):
            return found
        alternatives: dict[str, float] = {}
        options = token.get("top_logprobs")
        for option in options if isinstance(options, list) else ():
            chance = _probability(option.get("logprob")) if isinstance(option, Mapping) else None
            if chance is not None and isinstance(option.get("token"), str):
                alternatives[option["token"]] = alternatives.get(option["token"], 0.0) + chance
        found.append((token["token"], _probability(token.get("logprob")) or 0.0, alternatives))
    return found


def _chosen(choice: Mapping[str, Any], candidates: tuple[str, ...], text: str, thinks: bool) -> Reply | None:
    """The candidates' probabilities at the answer's first token that is not blank; None when they cannot be read there.

    A candidate of several tokens ("10" as "1", "0") is followed one token further along the path that was written.
    Where another path may have led to one (a likely "1" beside a written "9", and no "10"), they cannot be read.
    """
    tokens = _tokens(choice) if candidates else []
    if thinks:
        tokens = _after_thinking(tokens)
    first = next((i for i, token in enumerate(tokens) if token[0].strip(BLANKS)), None)
    if first is None or len(tokens[first][2]) < 2:  # the written token alone says nothing of the others
        return None
    word, share_of_word, options = tokens[first]
    mass = dict.fromkeys(candidates, 0.0)
    for option, share in options.items():
        name = option.strip(BLANKS).lower()
        if name in mass:
            mass[name] += share
    written = word.strip(BLANKS).lower()
    for option, share in tokens[first + 1][2].items() if first + 1 < len(tokens) else ():
        longer = written + option.lower()
        if longer in mass and longer != written:
            mass[longer] += share_of_word * share
            if written in mass:
                mass[written] = max(0.0, mass[written] - share_of_word * share)
    for name, share in mass.items():
        if share >= MIN_MASS and name != written and any(m == 0 and n.startswith(name) for n, m in mass.items()):
            return None
    total = sum(mass.values())
    return None if total < MIN_MASS else chosen(mass, text, f"; it said: {text}")


def _after_thinking(tokens: Sequence[Token]) -> list[Token]:
    """The tokens behind the last end of thinking; none where it stands in no token or they go on otherwise."""
    so_far = "".join(token for token, _, _ in tokens)
    ends = [match.end() for match in THINKING_ENDS.finditer(so_far)]
    length = 0
    for i, (token, _, _) in enumerate(tokens):
        if ends and length == ends[-1]:
            return list(tokens[i:])
        length += len(token)
    return []


def _probability(logprob: object) -> float | None:
    """None where there is no number; NaN where it is NaN or well above 0, which rounding does not explain."""
    if isinstance(logprob, bool) or not isinstance(logprob, (int, float)):
        return None
    return math.exp(max(logprob, -1e9)) if logprob < 1 else math.nan
