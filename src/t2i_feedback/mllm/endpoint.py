"""A model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, and whatever else speaks the protocol.

The client retries what may pass (connection, 408, 409, 429, 5xx) with exponential backoff and jitter, and waits as long
as Retry-After says. Keys come from the environment and go nowhere but into the request's header.
"""

import base64
import io
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from PIL import Image

from t2i_feedback.errors import UserError
from t2i_feedback.mllm.base import MIN_MASS, Decoding, Reply, Request, chosen, cost_usd
from t2i_feedback.params import EndpointEntry
from t2i_feedback.records import Status

TOP_LOGPROBS = 20  # as many as the protocol allows
CHOICE_TOKENS = 16  # room for "Score: 7/10" where the first token is not the answer
BLANKS = " \t\n\r\u2581\u0120"  # space, and the marks that tokenisers write for it


class EndpointMllm:
    """A Backend. At most `entry.concurrency` requests are under way at a time."""

    def __init__(self, name: str, entry: EndpointEntry):
        self._name, self._entry = name, entry
        key = "none"
        if entry.api_key_env is not None:
            key = os.environ.get(entry.api_key_env, "").strip()
            if not key:
                raise UserError(
                    f"mllms.{name}: the environment variable {entry.api_key_env} is not set; put the key for "
                    f"{entry.base_url} there, or set mllms.{name}.api_key_env: null for a server that wants none."
                )
        self._client = openai.OpenAI(
            api_key=key, base_url=entry.base_url, timeout=entry.timeout_seconds, max_retries=entry.retries
        )
        self._lock = threading.Lock()
        self._calls = 0
        self._turned_away: UserError | None = None  # for good: no further request is sent
        self._spent_usd = 0.0

    def close(self) -> None:
        self._client.close()

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """Groups of one, as they come. When something must stop the run, what was under way is still yielded first."""
        pool = ThreadPoolExecutor(self._entry.concurrency)
        futures = {pool.submit(self._answer, request, decoding): i for i, request in enumerate(requests)}
        problem: UserError | None = None
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        reply = future.result()
                    except UserError as error:
                        problem = problem or error
                        continue
                    yield [(futures[future], reply)]
                if problem:
                    pending = {future for future in pending if not future.cancel()}
        finally:
            pool.shutdown(cancel_futures=True)
        if problem:
            raise problem

    def _answer(self, request: Request, decoding: Decoding) -> Reply:
        self._take_from_budget()
        start = time.perf_counter()
        try:
            completion = self._client.chat.completions.create(**self._arguments(request, decoding))
        except openai.APIStatusError as error:
            return self._refused(error, time.perf_counter() - start)
        except openai.APIError as error:  # no connection, time-out, not JSON
            cause = f": {error.__cause__}" if error.__cause__ else ""
            return Reply("transport", f"{error.message}{cause}", seconds=time.perf_counter() - start)
        reply = self._read(completion, decoding, time.perf_counter() - start)
        with self._lock:
            self._spent_usd += cost_usd(self._entry, reply)
        return reply

    def _take_from_budget(self) -> None:
        entry = self._entry
        with self._lock:
            if self._turned_away:
                raise self._turned_away
            if entry.max_calls is not None and self._calls >= entry.max_calls:
                raise UserError(
                    f"mllms.{self._name}: the budget of max_calls = {entry.max_calls} is used up; every answer is "
                    "kept. Raise it and run the same command again."
                )
            if entry.max_cost_usd is not None and self._spent_usd >= entry.max_cost_usd:
                raise UserError(
                    f"mllms.{self._name}: the budget of max_cost_usd = {entry.max_cost_usd:g} is used up "
                    f"(${self._spent_usd:.4f} in {self._calls} calls); every answer is kept. Raise it and run the same "
                    "command again."
                )
            self._calls += 1

    def _arguments(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if request.image is not None:
            content.append({"type": "image_url", "image_url": {"url": _data_url(request.image)}})
        arguments: dict[str, Any] = {
            "model": self._entry.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": decoding.max_new_tokens,
            "temperature": 0.0,
            "seed": request.sample,
        }
        if decoding.candidates and self._entry.logprobs:
            arguments |= {"max_tokens": CHOICE_TOKENS, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return arguments

    def _refused(self, error: openai.APIStatusError, seconds: float) -> Reply:
        """A failed request's reply, or UserError when the next request would fail the same way."""
        message = " ".join(error.message.split())[:300]
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            key = f"the key in {self._entry.api_key_env}" if self._entry.api_key_env else "api_key_env (none is set)"
            self._turned_away = UserError(
                f"mllms.{self._name}: {self._entry.base_url} answered {error.status_code} for model "
                f"{self._entry.model}; check base_url, model and {key}. It said: {self._without_key(message)}"
            )
            raise self._turned_away from None
        if error.code in ("content_filter", "content_policy_violation"):
            return Reply("refusal", message, seconds=seconds)
        if error.code == "context_length_exceeded":
            return Reply("truncated", message, seconds=seconds)
        return Reply("transport", self._without_key(message), seconds=seconds)

    def _without_key(self, message: str) -> str:
        return message.replace(self._client.api_key, "[key]") if self._entry.api_key_env else message

    def _read(self, completion: ChatCompletion, decoding: Decoding, seconds: float) -> Reply:
        if not completion.choices:
            return Reply("transport", "the server's answer holds no choices", seconds=seconds)
        choice = completion.choices[0]
        text = (choice.message.content or "").strip()
        usage = completion.usage
        tokens_in, tokens_out = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        status: Status
        probabilities, mass = None, None
        if choice.finish_reason == "content_filter" or choice.message.refusal:
            status, text = "refusal", choice.message.refusal or text
        elif (read := _chosen(choice, decoding.candidates, text)) is not None:
            status, probabilities, mass = "valid", read.probabilities, read.mass
        else:
            status = "truncated" if choice.finish_reason == "length" else "valid"
        return Reply(status, text, probabilities, mass, tokens_in, tokens_out, seconds)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _chosen(choice: Choice, candidates: tuple[str, ...], text: str) -> Reply | None:
    """The candidates' probabilities at the answer's first token that is not blank; None when they cannot be read there.

    A candidate of several tokens ("10" as "1", "0") is followed one token further along the path that was written.
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
            mass[word] += math.exp(option.logprob)
    written = tokens[first].token.strip(BLANKS).lower()
    for option in tokens[first + 1].top_logprobs if first + 1 < len(tokens) else ():
        longer = written + option.token.lower()
        if longer in mass and longer != written:
            share = math.exp(tokens[first].logprob + option.logprob)
            mass[longer] += share
            if written in mass:
                mass[written] = max(0.0, mass[written] - share)
    return chosen(mass, text) if sum(mass.values()) >= MIN_MASS else None
