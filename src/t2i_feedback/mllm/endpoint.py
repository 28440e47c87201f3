"""A model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, and whatever else speaks the protocol.

The client retries what may pass (connection, 408, 409, 429, 5xx) with exponential backoff and jitter, and waits as long
as Retry-After says, two minutes at most: a server that wants more is not asked again, and its answer is lost on the
way. A parameter that a server refuses is renamed, made smaller or left out, and the question asked again (dialects.py).
Keys come from the environment and go nowhere but into the request's header.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import openai
from PIL import Image

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import completion, dialects, readings
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Abilities, Decoding, Reply, Request
from t2i_feedback.mllm.budget import Budget
from t2i_feedback.mllm.completion import CHOICE_TOKENS, Json
from t2i_feedback.mllm.dialects import Dialect
from t2i_feedback.mllm.readings import SCORES, YES_NO

PROBE = "Is grey a colour? Answer only yes or no."  # asked to find out what a server can do
VARIETY = (
    "Write any whole number between 1 and 1000000, and nothing else."  # its answers differ where temperature counts
)
TIMES = 3  # it is asked
PROBE_SIDE = 64  # pixels; some models take no smaller images
SAID = 300  # characters of what a server or a library said that are told and kept
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
GONE = (401, 403, 404)  # the next request would fail the same way
OF_CONTENT = ("content_filter", "content_policy_violation", "context_length_exceeded")  # no parameter is at fault
ADAPTATIONS = 12  # of one request; more parameters can be refused by no server
MODELS_SECONDS = 10  # to wait for a server's list of models
NOISY = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")  # clients that log a line for each request


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
        for logger in NOISY:
            logging.getLogger(logger).setLevel(logging.WARNING)
        self._proxy = _proxy(entry.base_url)
        self._client = self._connected(key)
        self._lock = threading.Lock()
        self._dialect = dialects.from_json(budget.noted("dialect"), entry.base_url)
        self._model = ""  # that answers have named so far in this process
        self._same_model = False  # whether the server's own list was looked at in this process
        self._fatal: UserError | None = None  # why no further request is sent
        self._has_answered = False  # once something there has, a lost connection is worth another try

    def _connected(self, key: str) -> openai.OpenAI:
        """The client. Addresses of this machine are never asked through a proxy."""
        entry = self._entry
        try:
            web = openai.DefaultHttpxClient(trust_env=False) if getproxies() and not self._proxy else None
            return openai.OpenAI(
                api_key=key,
                base_url=entry.base_url,
                timeout=entry.timeout_seconds,
                max_retries=entry.retries,
                http_client=web,
            )
        except (ImportError, ValueError) as error:
            raise UserError(
                f"mllms.{self._name}: {entry.base_url} cannot be asked through the proxy {self._shown_proxy} of the "
                f"environment ({' '.join(str(error).split())[:120]}); unset it, or put "
                f"{urlsplit(entry.base_url).hostname} into NO_PROXY."
            ) from None

    @property
    def _shown_proxy(self) -> str:
        """Without its password."""
        url = urlsplit(self._proxy)
        return f"{url.scheme}://{url.hostname or url.path}{f':{url.port}' if url.port else ''}"

    def close(self) -> None:
        self._client.close()

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """Groups as they come; the next requests go out when the consumer is done with a group, so that a process that
        dies loses at most `concurrency` of them. When something must stop the run, what is under way is still yielded.
        """
        self._check_model_behind()
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
        """Two questions when the server takes images and gives logprobs; some more when it does not.

        What was found to be otherwise than the protocol has it is told in one line.
        """
        self._check_model_behind()
        grey = Image.new("RGB", (PROBE_SIDE, PROBE_SIDE), (128, 128, 128)) if self._entry.images else None
        images, logprobs = False, False
        kinds: list[tuple[Image.Image | None, tuple[str, ...]]] = [(None, YES_NO), (None, ())]
        if grey:
            kinds = [(grey, YES_NO), (grey, ()), *kinds]
        for image, candidates in kinds:
            said = self._probe(Request(PROBE, image), Decoding(CHOICE_TOKENS, candidates))
            if isinstance(said, dict):
                images, logprobs = image is not None, self._gives_probabilities(said)
                break
        else:
            raise UserError(
                f"mllms.{self._name}: {self._entry.base_url} is there, but answers no question for model "
                f"{self._entry.model}. It said: {said}"
            )
        if not logprobs:
            logprobs = self._without_thinking(grey if images else None)
        schema = self._holds_to_schema()
        if not logprobs and self._entry.reading in ("auto", "samples") and self._entry.times_asked > 1:
            self._adopt(replace(self._dialect, steady=self._is_steady()))
        found = self._dialect.words()
        if found:
            print(f"mllms.{self._name}: the server at {self._entry.base_url} has {'; '.join(found)}", flush=True)
        return Abilities(images, logprobs, schema, self._dialect.changing(), varied=not self._dialect.steady)

    def _gives_probabilities(self, said: Json) -> bool:
        if not completion.gives_logprobs(said):
            return False
        if completion.degenerate(said):
            self._adopt(replace(self._dialect, degenerate=True))
            return False
        return True

    def _without_thinking(self, image: Image.Image | None) -> bool:
        """Whether a model that refuses what thinking models refuse gives probabilities once it does not think."""
        before = self._dialect
        if self._entry.reasoning is not None or (before.temperature and before.logprobs):
            return False
        self._adopt(replace(before, effort="none", temperature=True, logprobs=dialects.TOP_LOGPROBS))
        said = self._probe(Request(PROBE, image), Decoding(CHOICE_TOKENS, YES_NO))
        if isinstance(said, dict) and self._dialect.effort and self._gives_probabilities(said):
            return True
        self._adopt(before)
        return False

    def _holds_to_schema(self) -> bool:
        """Whether its answer is the JSON that was asked for: some take a schema and do not heed it."""
        for candidates in (SCORES, YES_NO):  # a schema with bounds of numbers, and one without
            decoding = Decoding(self._entry.max_new_tokens, schema=readings.schema(candidates))
            said = self._probe(Request(PROBE), decoding)
            if not isinstance(said, dict) or self._dialect.schema == "none":
                return False
            reply = completion.read(said, Request(PROBE), decoding, 0.0, self._entry.max_new_tokens)
            if not readings.is_json(reply.text):
                return False
        return True

    def _is_steady(self) -> bool:
        """Whether it gives the same answer each time, at a temperature at which it should not."""
        texts = set()
        for sample in range(TIMES):
            request, decoding = Request(VARIETY, None, sample), Decoding(CHOICE_TOKENS, temperature=1.0)
            said = self._probe(request, decoding)
            if not isinstance(said, dict):
                return False
            texts.add(completion.read(said, request, decoding, 0.0, CHOICE_TOKENS).text)
        return len(texts) == 1

    def _probe(self, request: Request, decoding: Decoding) -> Json | str:
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
        reply = self._read(said, request, decoding, 0.0)
        self._budget.pay(reply)
        if reply.status == "truncated" and "thinking used up" in reply.text and not self._dialect.thinks:
            self._adopt(replace(self._dialect, thinks=True))  # it needs room
            return self._probe(request, decoding)
        return self._without_key(reply.text) if reply.status == "transport" else said

    # -------------------------------------------------------------------------------------------- dialect, model

    def _adopt(self, dialect: Dialect) -> None:
        with self._lock:
            if dialect != self._dialect:
                self._dialect = dialect
                self._budget.note("dialect", dialect.to_json())

    def _check_model_behind(self) -> None:
        """Stop when the server's own list says that another model is loaded than when it was asked before."""
        if self._same_model:
            return
        self._same_model = True
        try:
            url = f"{self._entry.base_url.rstrip('/')}/models"
            listed = json.loads(self._client.with_options(timeout=MODELS_SECONDS, max_retries=0).get(url, cast_to=str))
            models = [one for one in listed["data"] if isinstance(one, dict)]
        except (openai.APIError, ValueError, KeyError, TypeError):
            return  # it has no such list
        named = [one for one in models if one.get("id") == self._entry.model]
        loaded = named if named else models if len(models) == 1 else []
        if loaded:
            meta = loaded[0].get("meta")
            sizes = {k: meta[k] for k in ("n_params", "size", "n_vocab") if k in meta} if isinstance(meta, dict) else {}
            loaded_words = {key: loaded[0][key] for key in ("id", "root") if loaded[0].get(key)} | sizes
            self._compare("lists", ", ".join(f"{key} {value}" for key, value in loaded_words.items())[:SAID])

    def _compare(self, how: str, model: str) -> None:
        """Note which model it is, or stop when it was another one that gave the answers which are kept."""
        known = self._budget.noted(how)
        if known is None:
            self._budget.note(how, model)
        elif known != model:
            self._give_up(
                UserError(
                    f"mllms.{self._name}: another model is behind {self._entry.base_url}: it {how} {model!r}, and the "
                    f"answers that are kept are by {known!r}. Start the one that was there, give the new one an entry "
                    f"with another model name, or forget the old answers: `make forget ENTRY={self._name}`."
                )
            )

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
        reply = self._read(said, request, decoding, time.perf_counter() - start)
        self._budget.pay(reply)
        named = completion.answered_by(said)
        if named and named != self._model:
            self._compare("answers as", named)
            self._model = named
        return reply

    def _limit(self, decoding: Decoding) -> int:
        """How many tokens may be written."""
        short = decoding.candidates or decoding.max_new_tokens == CHOICE_TOKENS
        return CHOICE_TOKENS if short and not self._thinks else max(decoding.max_new_tokens, self._room)

    @property
    def _thinks(self) -> bool:
        return self._entry.thinks or self._dialect.thinks

    @property
    def _room(self) -> int:
        """Tokens that every answer of a thinking model may have."""
        return self._entry.max_new_tokens if self._thinks else 0

    def _read(self, said: Json, request: Request, decoding: Decoding, seconds: float) -> Reply:
        off = self._entry.reasoning == "none" or self._dialect.effort == "none"
        off = off or (self._entry.extra_body.get("chat_template_kwargs") or {}).get("enable_thinking") is False
        reply = completion.read(said, request, decoding, seconds, self._limit(decoding), off)
        return replace(reply, text=self._without_key(reply.text)) if reply.status == "transport" else reply

    def _send(self, request: Request, decoding: Decoding) -> Json:
        """One call, retries and adaptations included. Raises UserError when it may not be made or nobody is there."""
        for _ in range(ADAPTATIONS):
            with self._lock:
                if self._fatal:
                    raise self._fatal
            self._budget.take()
            dialect = self._dialect
            body = completion.arguments(self._entry, request, decoding, self._limit(decoding))
            sent = dialects.fitted(body, dialect)
            try:
                said = completion.parsed(self._client.post("/chat/completions", body=sent, cast_to=str))
            except openai.APIConnectionError as error:
                if not self._has_answered and self._nobody_is_there(error):
                    self._give_up(UserError(self._nobody_there(error)))
                raise
            except openai.APIStatusError as error:
                self._has_answered = True
                better = None
                if error.status_code in dialects.REFUSALS and error.code not in (
                    "content_filter",
                    "context_length_exceeded",
                ):
                    better = dialects.adapted(dialect, sent, error.param or "", self._all_said(error))
                if better is None or better == dialect:
                    raise
                if self._dialect == dialect:  # another thread may have found the same
                    self._adopt(better)
                continue
            self._has_answered = True
            return said
        raise UserError(f"mllms.{self._name}: {self._entry.base_url} refuses every form of a request")

    def _nobody_is_there(self, error: openai.APIConnectionError) -> bool:
        return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")

    def _nobody_there(self, error: Exception) -> str:
        entry, url = self._entry, urlsplit(self._entry.base_url)
        nobody = f"mllms.{self._name}: nobody answers at {entry.base_url}."
        if self._proxy:
            return (
                f"{nobody[:-1]} through the proxy {self._shown_proxy} of the environment "
                f"({self._reason(error)[:120]}); correct it, or put {url.hostname} into NO_PROXY."
            )
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

    def _all_said(self, error: openai.APIStatusError) -> str:
        """The message, and the body where it says more: lists of problems, as FastAPI's 422 has them."""
        body = error.body if isinstance(error.body, str) else json.dumps(error.body, default=str)
        return f"{error.message} {body}"

    def _reason(self, error: Exception) -> str:
        return self._without_key(f"{error}{f': {error.__cause__}' if error.__cause__ else ''}")

    def _without_key(self, words: str) -> str:
        """Somebody's words on one line, cut, and without the key, which some servers repeat."""
        if self._entry.api_key_env:
            words = words.replace(self._client.api_key, "[key]")
        return " ".join(words.split())[:SAID]


def _proxy(base_url: str) -> str:
    """The proxy that the environment names for an address; "" = none. There is none for this machine's own."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if host in LOCAL_HOSTS or host.startswith("127.") or host.endswith(".localhost") or proxy_bypass(host):
        return ""
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all") or ""
