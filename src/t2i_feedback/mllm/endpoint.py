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
from typing import Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import openai

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.mllm import addresses, attempts, completion, dialects, probing
from t2i_feedback.mllm.backends.endpoint import EndpointEntry
from t2i_feedback.mllm.base import Abilities, Decoding, Relearn, Reply, Request
from t2i_feedback.mllm.budget import Budget
from t2i_feedback.mllm.completion import CHOICE_TOKENS, Json
from t2i_feedback.mllm.dialects import Dialect
from t2i_feedback.mllm.replies import MOST_TOKENS

SAID = 300  # characters of what a server or a library said that are told and kept
NO_CREDIT = 402
GONE = (401, NO_CREDIT, 403, 404)  # the next request would fail the same way
ADAPTATIONS = 12  # of one request; more parameters can be refused by no server
MODELS_SECONDS = 10  # to wait for a server's list of models
NOISY = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")  # clients that log a line for each request


class Given(NamedTuple):
    """What a server answered, to what it was sent, and the dialect of that."""

    said: Json
    sent: dict[str, object]
    dialect: Dialect


class EndpointMllm:
    """A Backend. At most `entry.concurrency` requests are under way at a time."""

    def __init__(self, name: str, entry: EndpointEntry, budget: Budget, protocol: str = ""):
        self.name, self.entry, self._budget = name, entry, budget
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
        self._proxy = addresses.proxy(entry.base_url)
        self._client = self._connected(key)
        self._lock = threading.Lock()
        self._own = threading.local()  # of what a thread asks: its tokens, and those of attempts lost so far
        self._noted = dialects.from_json(protocol)  # with which its abilities were found out
        self.dialect = self._noted or dialects.first(entry.base_url)
        self._model = ""  # that answers have named so far in this process
        self._listed: dict[str, Json] | None = None  # what its list says and is not noted yet; None = not looked at
        self._fatal: UserError | None = None  # why no further request is sent
        self._has_answered = False  # once something there has, a lost connection is worth another try

    def _connected(self, key: str) -> openai.OpenAI:
        """The client. Addresses of this machine are never asked through a proxy."""
        entry = self.entry
        try:
            through = bool(self._proxy) or not getproxies()
            web = attempts.Client(self._before_attempt, self._budget.give_back, self._after_loss, trust_env=through)
            return openai.OpenAI(
                api_key=key,
                base_url=entry.base_url,
                timeout=entry.timeout_seconds,
                max_retries=entry.retries,
                http_client=web,
            )
        except (ImportError, ValueError) as error:
            host, why = urlsplit(entry.base_url).hostname, " ".join(str(error).split())[:120]
            raise UserError(
                f"mllms.{self.name}: {entry.base_url} cannot be asked through the proxy {addresses.shown(self._proxy)} "
                f"of the environment ({why}); unset it, or put {host} into NO_PROXY."
            ) from None

    def close(self) -> None:
        self._client.close()

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """Groups as they come; the next requests go out when the consumer is done with a group, so that a process that
        dies loses at most `concurrency` of them. When something must stop the run, what is under way is still yielded.
        """
        self._check_model_behind()
        waiting = iter(enumerate(requests))
        under_way: dict[Future[Reply], int] = {}
        problem: UserError | Relearn | None = None
        with ThreadPoolExecutor(self.entry.concurrency) as pool:
            while True:
                free = 0 if problem else self.entry.concurrency - len(under_way)
                under_way |= {pool.submit(self._answer, r, decoding): i for i, r in islice(waiting, free)}
                if not under_way:
                    break
                group = []
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    i = under_way.pop(future)
                    try:
                        group.append((i, future.result()))
                    except (UserError, Relearn) as error:
                        problem = problem or error
                if group:
                    yield group
        if problem:
            raise problem

    def abilities(self) -> Abilities:
        self._check_model_behind()
        found = probing.abilities(self)
        self._noted = self.dialect
        return found

    def probe(self, request: Request, decoding: Decoding) -> Json | str:
        """The server's answer, or why it refused. Raises UserError when it cannot be asked now."""
        if self.thinks:
            decoding = replace(decoding, max_new_tokens=max(decoding.max_new_tokens, self.entry.max_new_tokens))
        try:
            given = self._send(request, decoding)
        except openai.APIStatusError as error:
            self._stop_if_gone(error)
            if error.status_code == 429 or (error.status_code >= 500 and not decoding.schema):  # a schema may break one
                raise self._cannot_be_asked(self._said(error)) from None
            return self._said(error)
        except openai.APIConnectionError as error:
            raise self._cannot_be_asked(self._reason(error)) from None
        except (openai.APIError, ValueError) as error:
            return self._reason(error)
        reply = self._read(given, request, decoding, 0.0)
        self._budget.pay(reply)
        if finish := completion.ends_unknown(given.said):
            raise UserError(
                f"mllms.{self.name}: {self.entry.base_url} ends its answers with finish_reason {finish!r}, "
                "which is not known here: whether they are whole cannot be told"
            )
        if reason := completion.broken_off(given.said):
            raise self._cannot_be_asked(self._without_key(reason))
        if reply.status == "truncated" and "thinking used up" in reply.text and not self.dialect.thinks:
            self.dialect = replace(self.dialect, thinks=True)  # it needs room
            return self.probe(request, decoding)
        return self._without_key(reply.text) if reply.status == "transport" else given.said

    # -------------------------------------------------------------------------------------------- the model behind it

    def _check_model_behind(self) -> None:
        """Stop when the server's own list says that another model is loaded than when it was asked before."""
        if self._listed is not None:
            return
        self._listed = self._list()
        known = self._known_list()
        if any(known.get(key, value) != value for key, value in self._listed.items()):
            self._stop_for_another("lists", *(_words(facts) for facts in (self._listed, known)))

    def _list(self) -> dict[str, Json]:
        """What the server's list says of the model; nothing where it has none. While it loads, it may say less."""
        try:
            url = f"{self.entry.base_url.rstrip('/')}/models"
            listed = json.loads(self._client.with_options(timeout=MODELS_SECONDS, max_retries=0).get(url, cast_to=str))
            models = [one for one in listed["data"] if isinstance(one, dict)]
        except (openai.APIError, ValueError, KeyError, TypeError):
            return {}
        named = [one for one in models if one.get("id") == self.entry.model]
        loaded = named or (models if len(models) == 1 else [{}])
        meta = loaded[0].get("meta")
        facts = (meta if isinstance(meta, dict) else {}) | loaded[0]
        return {key: facts[key] for key in ("id", "root", "n_params", "size", "n_vocab") if facts.get(key)}

    def _known_list(self) -> dict[str, Json]:
        known = completion.parsed(self._budget.noted("lists") or "")
        return known if isinstance(known, dict) else {}  # earlier versions noted words

    def _note_model(self, said: Json) -> None:
        """After an answer: which model it is by. Raises UserError when another one gave the answers that are kept."""
        if listed := self._listed:
            self._budget.note("lists", json.dumps(self._known_list() | listed))
            self._listed = {}
        named = completion.answered_by(said)
        if not named or named == self._model:
            return
        known = self._budget.noted("answers as")
        if known is None:
            self._budget.note("answers as", named)
        elif known != named:
            self._stop_for_another("answers as", named, known)
        self._model = named

    def _stop_for_another(self, how: str, model: str, known: str) -> None:
        self._give_up(
            UserError(
                f"mllms.{self.name}: another model is behind {self.entry.base_url}: it {how} {model!r}, and the "
                f"answers that are kept are by {known!r}. Start the one that was there, give the new one an entry "
                f"with another model name, or forget the old answers: `make forget ENTRY={self.name}`."
            )
        )

    def _cannot_be_asked(self, reason: str) -> UserError:
        return UserError(
            f"mllms.{self.name}: {self.entry.base_url} cannot be asked now ({reason}); run the same command again "
            "later, every answer is kept."
        )

    # -------------------------------------------------------------------------------------------- one request

    def _answer(self, request: Request, decoding: Decoding) -> Reply:
        start = time.perf_counter()
        if self.dialect != self._noted:
            raise Relearn
        try:
            given = self._send(request, decoding)
        except openai.APIStatusError as error:
            return self._refused(error, time.perf_counter() - start)
        except (openai.APIError, ValueError) as error:  # no connection, time-out, not JSON
            lost = self._own.lost
            return Reply("transport", self._reason(error), tokens_in=lost, seconds=time.perf_counter() - start)
        reply = self._read(given, request, decoding, time.perf_counter() - start)
        self._budget.pay(reply)
        if given.dialect != self._noted:
            raise Relearn
        self._note_model(given.said)
        return reply

    def _limit(self, decoding: Decoding) -> int:
        """How many tokens may be written."""
        return CHOICE_TOKENS if decoding.candidates and not self.thinks else decoding.max_new_tokens

    @property
    def thinks(self) -> bool:
        return self.entry.thinks or self.dialect.thinks

    def _read(self, given: Given, request: Request, decoding: Decoding, seconds: float) -> Reply:
        template = given.sent.get("chat_template_kwargs")
        off = given.sent.get("reasoning_effort") == "none"
        off = off or (isinstance(template, dict) and template.get("enable_thinking") is False)
        limit = self._limit(decoding) if given.dialect.limit else MOST_TOKENS  # where none is sent, nothing is cut
        reply = completion.read(given.said, request, decoding, seconds, limit, off)
        return replace(reply, text=self._without_key(reply.text)) if reply.status == "transport" else reply

    def _send(self, request: Request, decoding: Decoding) -> Given:
        """One call, retries and adaptations included. Raises UserError when it may not be made or nobody is there.

        A dialect is learnt from a request that is answered in it; one that fails in every form teaches nothing.
        """
        spoken = dialect = self.dialect
        self._own.tokens, self._own.lost = completion.estimated(request, "")[0], 0
        for _ in range(ADAPTATIONS):
            body = completion.arguments(self.entry, request, decoding, self._limit(decoding))
            sent = dialects.fitted(body, dialect)
            try:
                said = completion.parsed(self._client.post("/chat/completions", body=sent, cast_to=str))
            except openai.APIConnectionError as error:
                if not self._has_answered and self._nobody_is_there(error):
                    self._give_up(
                        UserError(
                            f"mllms.{self.name}: {addresses.nobody(self.entry, self._proxy, self._reason(error))}"
                        )
                    )
                raise
            except openai.APIStatusError as error:
                self._has_answered = True
                better = self._adapted(dialect, sent, request, error)
                if better is None or better == dialect:
                    raise
                dialect = better
                continue
            self._has_answered = True
            if dialect != spoken:
                self.dialect = dialect
            return Given(said, sent, dialect)
        raise UserError(f"mllms.{self.name}: {self.entry.base_url} refuses every form of a request")

    def _before_attempt(self) -> None:
        with self._lock:
            if self._fatal:
                raise self._fatal
        self._budget.take()

    def _after_loss(self) -> None:
        """An attempt without an answer is paid for all the same: the server may have read it, and have written."""
        self._own.lost += self._own.tokens
        self._budget.pay(Reply("transport", "", tokens_in=self._own.tokens))

    def _adapted(
        self, dialect: Dialect, sent: dict[str, object], request: Request, error: openai.APIStatusError
    ) -> Dialect | None:
        """What to speak after a refusal; None where no other dialect helps. Raises UserError for a value of ours."""
        if error.status_code not in dialects.REFUSALS or self._fault_of_content(error):
            return None
        refusal = (sent, error.param or "", self._all_said(error))
        if dialects.wrong_value(*refusal) == "temperature":
            if not request.role:  # a probe, which finds out just that
                return None
            advice = f"choose another mllms.{self.name}.reading"
            if request.role == "enhance":
                advice = "lower stage1.temperature"
            self._give_up(
                UserError(
                    f"mllms.{self.name}: {self.entry.base_url} takes no temperature of {sent['temperature']}; "
                    f"{advice}. It said: {self._said(error)}"
                )
            )
        return dialects.adapted(dialect, *refusal)

    def _nobody_is_there(self, error: openai.APIConnectionError) -> bool:
        return type(error.__cause__).__name__ in attempts.UNSENT

    def _give_up(self, problem: UserError) -> None:
        """Nothing is sent any more."""
        with self._lock:
            self._fatal = problem
        raise problem from None

    def _stop_if_gone(self, error: openai.APIStatusError) -> None:
        no_credit = error.status_code == NO_CREDIT or error.code == "insufficient_quota"
        if self._fault_of_content(error) or not (no_credit or error.status_code in GONE):
            return
        key = f"the key in {self.entry.api_key_env}" if self.entry.api_key_env else "api_key_env (none is set)"
        advice = f"check base_url, model and {key}"
        if no_credit:
            advice = "there is no credit left: add some and run the same command again, every answer is kept"
        self._give_up(
            UserError(
                f"mllms.{self.name}: {self.entry.base_url} answered {error.status_code} for model "
                f"{self.entry.model}; {advice}. It said: {self._said(error)}"
            )
        )

    def _fault_of_content(self, error: openai.APIStatusError) -> Literal["refusal", "truncated"] | None:
        return completion.fault_of_content(error.status_code, str(error.code or ""), self._all_said(error))

    def _refused(self, error: openai.APIStatusError, seconds: float) -> Reply:
        """A failed request's reply. Raises UserError when the next request would fail the same way."""
        self._stop_if_gone(error)
        return Reply(self._fault_of_content(error) or "transport", self._said(error), seconds=seconds)

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
        if self.entry.api_key_env:
            words = words.replace(self._client.api_key, "[key]")
        return " ".join(words.split())[:SAID]


def _words(facts: dict[str, Json]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())[:SAID]
