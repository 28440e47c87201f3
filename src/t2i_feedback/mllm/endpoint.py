"""A model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, and whatever else speaks the protocol.

The client retries what may pass (connection, 408, 409, 429, 5xx) with exponential backoff and jitter, and waits as long
as Retry-After says, two minutes at most: a server that wants more is not asked again, and its answer is lost on the
way. Keys come from the environment and go nowhere but into the request's header.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import completion, readings
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Abilities, Decoding, Reply, Request
from t2i_feedback.mllm.budget import Budget
from t2i_feedback.mllm.completion import CHOICE_TOKENS
from t2i_feedback.mllm.readings import YES_NO

PROBE = "Is grey a colour? Answer only yes or no."  # asked to find out what a server can do
PROBE_SIDE = 64  # pixels; some models take no smaller images
SAID = 300  # characters of what a server or a library said that are told and kept
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
GONE = (401, 403, 404)  # the next request would fail the same way


class EndpointMllm:
    """A Backend. At most `entry.concurrency` requests are under way at a time."""

    def __init__(self, name: str, entry: EndpointEntry, budget: Budget):
        self._name, self._entry, self._budget = name, entry, budget
        key = "none"
        if entry.api_key_env is not None:
            key = os.environ.get(entry.api_key_env, "").strip()
            if not key:
                raise UserError(
                    f"mllms.{name}: the environment variable {entry.api_key_env} is not set; put the key for "
                    f"{entry.base_url} there, or set mllms.{name}.api_key_env: null for a server that wants none."
                )
            if not (key.isascii() and key.isprintable()):
                raise UserError(
                    f"mllms.{name}: the environment variable {entry.api_key_env} holds what cannot be sent as a key (a "
                    "line break, or a letter that is not ASCII); put the key alone there."
                )
        self._client = openai.OpenAI(
            api_key=key, base_url=entry.base_url, timeout=entry.timeout_seconds, max_retries=entry.retries
        )
        self._lock = threading.Lock()
        self._fatal: UserError | None = None  # why no further request is sent
        self._has_answered = False  # once something there has, a lost connection is worth another try

    def close(self) -> None:
        self._client.close()

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """Groups as they come; the next requests go out when the consumer is done with a group, so that a process that
        dies loses at most `concurrency` of them. When something must stop the run, what is under way is still yielded.
        """
        waiting = iter(enumerate(requests))
        under_way: dict[Future[Reply], int] = {}
        problem: UserError | None = None
        with ThreadPoolExecutor(self._entry.concurrency) as pool:
            while True:
                free = 0 if problem else self._entry.concurrency - len(under_way)
                under_way |= {pool.submit(self._answer, r, decoding): i for i, r in islice(waiting, free)}
                if not under_way:
                    break
                group = []
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    i = under_way.pop(future)
                    try:
                        group.append((i, future.result()))
                    except UserError as error:
                        problem = problem or error
                if group:
                    yield group
        if problem:
            raise problem

    # -------------------------------------------------------------------------------------------- abilities

    def abilities(self) -> Abilities:
        """Two questions when the server takes images and gives logprobs; up to five when it does not."""
        grey = Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), (128, 128, 128)) if self._entry.images else None
        images, logprobs = False, False
        kinds: list[tuple[Image.Image | None, tuple[str, ...]]] = [(None, YES_NO), (None, ())]
        if grey:
            kinds = [(grey, YES_NO), (grey, ()), *kinds]
        for image, candidates in kinds:
            said = self._probe(Request(PROBE, image), Decoding(CHOICE_TOKENS, candidates))
            if isinstance(said, ChatCompletion):
                images, logprobs = image is not None, completion.gives_logprobs(said)
                break
        else:
            raise UserError(
                f"mllms.{self._name}: {self._entry.base_url} is there, but answers no question for model "
                f"{self._entry.model}. It said: {said}"
            )
        return Abilities(images, logprobs, self._holds_to_schema())

    def _holds_to_schema(self) -> bool:
        schema = readings.schema(YES_NO)
        said = self._probe(Request(PROBE), Decoding(self._entry.max_new_tokens, schema=schema))
        return isinstance(said, ChatCompletion) and readings.is_json(said.choices[0].message.content or "")

    def _probe(self, request: Request, decoding: Decoding) -> ChatCompletion | str:
        """The server's answer, or why it refused. Raises UserError when it cannot be asked now."""
        try:
            said = self._send(request, decoding)
        except openai.APIStatusError as error:
            self._stop_if_gone(error)
            if error.status_code == 429 or (error.status_code >= 500 and not decoding.schema):  # a schema may break one
                raise self._cannot_be_asked(self._said(error)) from None
            return self._said(error)
        except openai.APIConnectionError as error:
            raise self._cannot_be_asked(self._reason(error)) from None
        except (openai.APIError, ValueError) as error:
            return self._reason(error)
        reply = completion.read(said, request, decoding, 0.0)
        self._budget.pay(reply)
        return reply.text if reply.status == "transport" else said

    def _cannot_be_asked(self, reason: str) -> UserError:
        return UserError(
            f"mllms.{self._name}: {self._entry.base_url} cannot be asked now ({reason}); run the same command again "
            "later, every answer is kept."
        )

    # -------------------------------------------------------------------------------------------- one request

    def _answer(self, request: Request, decoding: Decoding) -> Reply:
        start = time.perf_counter()
        try:
            said = self._send(request, decoding)
        except openai.APIStatusError as error:
            return self._refused(error, time.perf_counter() - start)
        except (openai.APIError, ValueError) as error:  # no connection, time-out, not JSON
            return Reply("transport", self._reason(error), seconds=time.perf_counter() - start)
        reply = completion.read(said, request, decoding, time.perf_counter() - start)
        self._budget.pay(reply)
        return reply

    def _send(self, request: Request, decoding: Decoding) -> ChatCompletion:
        """One call, retries included. Raises UserError when it may not be made or nobody is there."""
        with self._lock:
            if self._fatal:
                raise self._fatal
        self._budget.take()
        try:
            said = self._client.chat.completions.create(**completion.arguments(self._entry.model, request, decoding))
        except openai.APIConnectionError as error:
            if not self._has_answered and type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
                self._give_up(UserError(self._nobody_there()))
            raise
        except openai.APIStatusError:
            self._has_answered = True
            raise
        self._has_answered = True
        return said

    def _nobody_there(self) -> str:
        entry, url = self._entry, urlsplit(self._entry.base_url)
        nobody = f"mllms.{self._name}: nobody answers at {entry.base_url}."
        if url.hostname not in LOCAL_HOSTS:
            return f"{nobody} Check the network (a proxy, a firewall) and mllms.{self._name}.base_url."
        port = url.port or (443 if url.scheme == "https" else 80)
        return (
            f"{nobody} Start a server there, for example "
            f"`vllm serve {entry.model} --port {port}`, `llama-server -m FILE.gguf --mmproj FILE.gguf --port {port}` "
            f"or `transformers serve {entry.model} --port {port}`, or correct mllms.{self._name}.base_url."
        )

    def _give_up(self, problem: UserError) -> None:
        """Nothing is sent any more."""
        with self._lock:
            self._fatal = problem
        raise problem from None

    def _stop_if_gone(self, error: openai.APIStatusError) -> None:
        if error.status_code in GONE or error.code == "insufficient_quota":
            key = f"the key in {self._entry.api_key_env}" if self._entry.api_key_env else "api_key_env (none is set)"
            self._give_up(
                UserError(
                    f"mllms.{self._name}: {self._entry.base_url} answered {error.status_code} for model "
                    f"{self._entry.model}; check base_url, model and {key}. It said: {self._said(error)}"
                )
            )

    def _refused(self, error: openai.APIStatusError, seconds: float) -> Reply:
        """A failed request's reply. Raises UserError when the next request would fail the same way."""
        self._stop_if_gone(error)
        if error.code in ("content_filter", "content_policy_violation"):
            return Reply("refusal", self._said(error), seconds=seconds)
        if error.code == "context_length_exceeded":
            return Reply("truncated", self._said(error), seconds=seconds)
        return Reply("transport", self._said(error), seconds=seconds)

    def _said(self, error: openai.APIStatusError) -> str:
        return self._without_key(error.message)

    def _reason(self, error: Exception) -> str:
        return self._without_key(f"{error}{f': {error.__cause__}' if error.__cause__ else ''}")

    def _without_key(self, words: str) -> str:
        """Somebody's words on one line, cut, and without the key, which some servers repeat."""
        if self._entry.api_key_env:
            words = words.replace(self._client.api_key, "[key]")
        return " ".join(words.split())[:SAID]
