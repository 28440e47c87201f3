"""Chat completions of the OpenAI protocol: requests and replies, in and out. Nothing is sent from here."""

import base64
import io
import json
import math
from dataclasses import replace
from typing import Any

from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from PIL import Image

from t2i_feedback.mllm.base import MIN_MASS, Decoding, Reply, Request, chosen
from t2i_feedback.mllm.readings import without_thinking

TOP_LOGPROBS = 20  # as many as the protocol allows
CHOICE_TOKENS = 16  # room for "Score: 7/10" where the first token is not the answer
CHARACTERS_PER_TOKEN, IMAGE_TOKENS = 3, 1000  # where a server counts none: rather too many than too few
BLANKS = " \t\n\r\u2581\u0120"  # space, and the marks that tokenisers write for it


def arguments(model: str, request: Request, decoding: Decoding) -> dict[str, Any]:
    """What `chat.completions.create` is called with. The image stands first, as open models learnt it."""
    content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
    if request.image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": data_url(request.image)}})
    found: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "seed": request.sample,
    }
    if decoding.candidates:
        found |= {"max_tokens": CHOICE_TOKENS, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if decoding.schema:
        form = {"name": "answer", "strict": True, "schema": json.loads(decoding.schema)}
        found["response_format"] = {"type": "json_schema", "json_schema": form}
    return found


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read(completion: object, request: Request, decoding: Decoding, seconds: float) -> Reply:
    """The reply that a server's answer holds; transport when it is no chat completion, whatever else it may be.

    Its tokens are the server's count, or an estimate where it gives none: a budget of dollars is to stop all the same.
    """
    if not isinstance(completion, ChatCompletion):
        return Reply("transport", f"not a chat completion: {str(completion)[:160]}", seconds=seconds)
    try:
        return _read(completion, request, decoding, seconds)
    except (AttributeError, TypeError, IndexError, ValueError) as error:  # the client does not check what is in it
        return Reply("transport", f"not a chat completion: {error}", seconds=seconds)


def gives_logprobs(completion: ChatCompletion) -> bool:
    logprobs = completion.choices[0].logprobs if completion.choices else None
    return bool(logprobs and logprobs.content and logprobs.content[0].top_logprobs)


def _read(completion: ChatCompletion, request: Request, decoding: Decoding, seconds: float) -> Reply:
    choice = completion.choices[0]
    text = (choice.message.content or "").strip()
    apart = str(getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None) or "")
    usage = completion.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else _estimated(request, apart + text)
    if choice.finish_reason == "content_filter" or choice.message.refusal:
        return Reply("refusal", choice.message.refusal or text, None, None, *tokens, seconds)
    answer = without_thinking(text)
    thought = apart or answer != text  # what is written first is no answer then
    if not thought and (found := _chosen(choice, decoding.candidates, text)) is not None:
        return replace(found, tokens_in=tokens[0], tokens_out=tokens[1], seconds=seconds)
    if choice.finish_reason != "length":
        return Reply("valid", text, None, None, *tokens, seconds)
    if thought and not answer:
        text = f"thinking used up the limit of {_limit(decoding)}: {apart or text}"
    return Reply("truncated", text, None, None, *tokens, seconds)


def _limit(decoding: Decoding) -> str:
    """How much a model may write, and how that becomes more."""
    if decoding.candidates:
        return f"{CHOICE_TOKENS} tokens: choose reading: text, which has max_new_tokens"
    return f"{decoding.max_new_tokens} tokens: raise max_new_tokens"


def _estimated(request: Request, text: str) -> tuple[int, int]:
    """Tokens read and written."""
    image = 0 if request.image is None else IMAGE_TOKENS
    read, written = (math.ceil(len(words) / CHARACTERS_PER_TOKEN) for words in (request.text, text))
    return image + read, written


def _chosen(choice: Choice, candidates: tuple[str, ...], text: str) -> Reply | None:
    """The candidates' probabilities at the answer's first token that is not blank; None when they cannot be read there.

    A candidate of several tokens ("10" as "1", "0") is followed one token further along the path that was written.
    Where another path may have led to one (a likely "1" beside a written "9", and no "10"), they cannot be read.
    """
    if not candidates or choice.logprobs is None or not choice.logprobs.content:
        return None
    tokens = choice.logprobs.content
    first = next((i for i, token in enumerate(tokens) if token.token.strip(BLANKS)), None)
    if first is None:
        return None
    mass = dict.fromkeys(candidates, 0.0)
    for option in tokens[first].top_logprobs:
        word = option.token.strip(BLANKS).lower()
        if word in mass:
            mass[word] += _probability(option.logprob)
    written = tokens[first].token.strip(BLANKS).lower()
    for option in tokens[first + 1].top_logprobs if first + 1 < len(tokens) else ():
        longer = written + option.token.lower()
        if longer in mass and longer != written:
            share = _probability(tokens[first].logprob + option.logprob)
            mass[longer] += share
            if written in mass:
                mass[written] = max(0.0, mass[written] - share)
    for name, share in mass.items():
        if share >= MIN_MASS and name != written and any(m == 0 and n.startswith(name) for n, m in mass.items()):
            return None
    return None if sum(mass.values()) < MIN_MASS else chosen(mass, text, f"; it said: {text}")


def _probability(logprob: float) -> float:
    """NaN where the logprob is NaN or well above 0, which rounding does not explain."""
    return math.exp(logprob) if logprob < 1 else math.nan
