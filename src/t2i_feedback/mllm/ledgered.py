"""A model behind the ledger: what it was asked before is not asked again, and what it cannot do is done otherwise."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image
from tqdm import tqdm

from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import Reading
from t2i_feedback.mllm import backends, readings, replies, wording
from t2i_feedback.mllm.base import Abilities, Backend, Decoding, Outcome, Relearn, Reply, Request, most_frequent
from t2i_feedback.mllm.dialects import NO_LIMIT
from t2i_feedback.mllm.ledger import Entry, Ledger

EARLY, EARLY_SHARE = 40, 0.5  # after so many answers, asking stops when more than this share of them is not valid
MANY = 64  # from so many open questions on, progress is shown
RELEARNT = 5  # times that a model's abilities may turn out to be others while one list of questions is asked
SAMPLING_TEMPERATURE = 1.0  # of the reading `samples`: answers as often as the model believes them


class Ledgered:
    """A Mllm. The backend is loaded when the first question is really asked, or its abilities are not known yet."""

    def __init__(
        self,
        entry: backends.Entry,
        identity: str,
        load: Callable[[], Backend],
        ledger: Ledger,
        name: str = "model",
        max_invalid: tuple[str, float] = ("max_invalid_fraction", 1.0),
    ):
        self._limit_key, self._limit = max_invalid
        self._entry, self._identity, self._load, self._ledger, self._name = entry, identity, load, ledger, name
        self._backend: Backend | None = None
        self._abilities: Abilities | None = None
        self._reading: Reading | None = None

    @property
    def templates(self) -> str:
        return self._entry.templates

    @property
    def reading(self) -> Reading:
        """The entry's; `auto` is the best that the backend has: probabilities, else samples, else text."""
        if self._reading is None:
            self._reading = self._resolve_reading()
        return self._reading

    def ready(self, images: bool) -> None:
        """Find out whether the model can do what it will be asked. Raises UserError with what it cannot."""
        wording.version(self.templates)
        if images and not (self._entry.images and self._can("images")):
            raise UserError(
                f"mllms.{self._name}: {self._entry.model} reads text alone and cannot look at images; it can enhance "
                "prompts, but to validate and to judge choose a model that sees."
            )
        _ = self.reading

    def abilities(self) -> Abilities:
        """Found out once; from then on the ledger knows."""
        if self._abilities is None:
            self._abilities = self._ledger.abilities(self._asked_about) or self._find_abilities()
        return self._abilities

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> list[Reply]:
        def ask() -> list[Reply]:
            most = self._entry.max_new_tokens
            limit = max(max_new_tokens or most, most if self.abilities().thinks else 0)
            return self._answer(requests, Decoding(limit, temperature=temperature))

        return self._asking(ask)

    def choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        return self._asking(lambda: self._choose(requests, candidates))

    def _choose(self, requests: Sequence[Request], candidates: tuple[str, ...]) -> list[Reply]:
        decoding = Decoding(self._entry.max_new_tokens)
        if self.reading == "probability":
            return self._answer(requests, replace(decoding, candidates=candidates))
        if self.abilities().schema:
            decoding = replace(decoding, schema=readings.schema(candidates))
        if self.reading == "text":
            return self._answer(requests, decoding)
        count = self._entry.times_asked
        asked = [replace(request, sample=request.sample * count + i) for request in requests for i in range(count)]
        given = self._answer(asked, replace(decoding, temperature=SAMPLING_TEMPERATURE))
        groups = [given[start : start + count] for start in range(0, len(given), count)]
        return [readings.pooled(candidates, group) for group in groups]

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    # -------------------------------------------------------------------------------------------- abilities

    @property
    def _asked_about(self) -> str:
        return self._entry.asked_about(self._identity)

    def _find_abilities(self) -> Abilities:
        found = self._loaded().abilities()
        self._ledger.note_abilities(self._asked_about, found)
        return found

    def _can(self, ability: Literal["images", "logprobs"]) -> bool:
        """Whether it can what it must. When the ledger says no, it is asked again: the server may be another by now."""
        if not getattr(self.abilities(), ability) and self._backend is None:  # nobody was asked in this run
            self._abilities = self._find_abilities()
        return getattr(self.abilities(), ability)

    def _resolve_reading(self) -> Reading:
        entry = self._entry
        if entry.reading == "probability" and not self._can("logprobs"):
            raise UserError(
                f"mllms.{self._name}.reading: {entry.model} gives no probabilities (logprobs); use reading: auto, "
                "samples or text, or a server that gives them."
            )
        if entry.reading != "auto":
            return entry.reading
        if self.abilities().logprobs:
            return "probability"
        return "samples" if entry.times_asked > 1 and self.abilities().varied else "text"

    # -------------------------------------------------------------------------------------------- asking

    def _loaded(self) -> Backend:
        if self._backend is None:
            self._backend = self._load()
        return self._backend

    def _asking(self, ask: Callable[[], list[Reply]]) -> list[Reply]:
        """What `ask` gives; once more where the abilities that its questions rest on turn out to be others."""
        for _ in range(RELEARNT):
            try:
                return ask()
            except Relearn:
                self._abilities, self._reading = self._find_abilities(), None
        raise UserError(f"mllms.{self._name}: what {self._entry.model} takes of a request changes all the time")

    def _answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
        requests = [self._bounded(request) for request in requests]
        dialect = self.abilities().dialect
        identity = f"{self._identity} {dialect}" if dialect else self._identity
        keys = [_key(identity, request, decoding) for request in requests]
        found = self._ledger.find(list(dict.fromkeys(keys)))
        answers = {key: self._as_now(reply, decoding) for key, reply in found.items()}
        open_requests = {key: r for key, r in zip(keys, requests, strict=True) if key not in answers}
        if requests and len(open_requests) < len(requests):
            self._ledger.count_hits(self._entry.model, requests[0].role, len(requests) - len(open_requests))
        if open_requests:
            answers |= self._ask(open_requests, decoding)
        return [readings.typed(answers[key], request.role) for key, request in zip(keys, requests, strict=True)]

    def _bounded(self, request: Request) -> Request:
        """With an image of at most the entry's max_image_side."""
        side, image = self._entry.max_image_side, request.image
        if image is None or side is None or max(image.size) <= side:
            return request
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        return replace(request, image=image.resize((width, height), Image.Resampling.LANCZOS))

    def _as_now(self, kept: Reply, decoding: Decoding) -> Reply:
        """What the ledger holds goes through the same step as a new reply: nothing is valid for ever."""
        reply = replies.whole(kept)
        served = not self._entry.in_process and NO_LIMIT not in self.abilities().dialect
        is_text = reply.status == "valid" and reply.probabilities is None and not decoding.candidates
        most = max(decoding.max_new_tokens, self._entry.max_new_tokens)
        return replace(reply, status="truncated") if is_text and served and reply.tokens_out >= most else reply

    def _ask(self, open_requests: dict[str, Request], decoding: Decoding) -> dict[str, Reply]:
        """Ask what is not in the ledger; every group of answers is kept as soon as it comes."""
        backend = self._loaded()
        asked = sorted(open_requests.items(), key=lambda item: len(item[1].text))  # batches of like length
        answered: dict[str, Reply] = {}
        role = asked[0][1].role
        invalid: list[Reply] = []
        with tqdm(total=len(asked), desc=role, unit=" answers", disable=len(asked) < MANY, mininterval=1) as progress:
            for group in backend.answers([request for _, request in asked], decoding):
                kept = [self._entry_of(*asked[i], replies.whole(reply)) for i, reply in group]
                self._ledger.keep(self._entry.model, kept, self._identity)
                answered |= {entry.key: entry.reply for entry in kept}
                invalid += [replace(entry.reply, status=entry.status) for entry in kept if entry.status != "valid"]
                progress.update(len(group))
                self._look_early(role, invalid, len(answered), len(asked))
        return answered

    def _look_early(self, role: str, invalid: Sequence[Reply], answered: int, asked: int) -> None:
        """Stop a model that gives hardly a valid answer before it was asked everything."""
        if answered < EARLY or answered == asked or len(invalid) <= max(EARLY_SHARE, self._limit) * answered:
            return
        outcomes: list[Outcome] = [Outcome(reply.status, None, reply.text) for reply in invalid]
        raise UserError(
            f"mllms.{self._name} as {role}: {len(invalid)} of the first {answered} answers (of {asked}) are not valid, "
            f"far more than {self._limit_key} = {self._limit:g} allows{most_frequent(outcomes)}"
        )

    def _entry_of(self, key: str, request: Request, reply: Reply) -> Entry:
        status = readings.typed(reply, request.role).status
        cost = self._entry.cost_usd(reply.tokens_in, reply.tokens_out)
        return Entry(key, request.role, request.template, status, reply, cost)


def _key(identity: str, request: Request, decoding: Decoding) -> str:
    image = None if request.image is None else _pixels(request.image)
    how = [decoding.candidates, decoding.max_new_tokens, decoding.temperature, decoding.schema]
    return hashlib.sha256(json.dumps([identity, request.text, image, how, request.sample]).encode()).hexdigest()


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
