"""A checkpoint that transformers loads into this process: LLaVA and whatever else is an image-text-to-text model."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import BatchFeature, GenerationConfig, LogitsProcessor, LogitsProcessorList

from t2i_feedback.foundation import device
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.mllm import loading, replies
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import NOT_FINITE, Abilities, Decoding, Reply, Request, chosen

MIN_PREFIX = 1e-3  # continuations of less probable beginnings are not looked into; bounds the error of a mass
WIDER = {"float16": "bfloat16 or float32", "bfloat16": "float32"}  # where a dtype overflows, those that may not

Tokens = tuple[int, ...]


class _RefusedError(Exception):
    """A processor does not take an image."""


class _Finite(LogitsProcessor):
    """Notes at each step which rows of the batch have finite logits; -inf, of a token that is ruled out, is fine."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []  # bool [batch] each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append((scores < torch.inf).all(-1))
        return scores


class _Drawn(LogitsProcessor):
    """Makes the likeliest token one that is drawn at a temperature: Gumbel noise is added, each row's from its seed.

    So what is drawn depends on the request alone, and not on the batch or the device (Gumbel, 1954; Maddison et al.,
    *A star sampling*, 2014).
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature, self.sources = temperature, generators(seeds)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.stack([torch.rand(scores.shape[1], generator=source) for source in self.sources])
        gumbel = -(-uniform.clamp(1e-30, 1 - 1e-7).log()).log()
        return scores.float() / self.temperature + gumbel.to(scores.device)


class LocalMllm:
    """A Backend. Loading takes seconds to minutes; answers come in batches of `entry.batch_size`."""

    def __init__(self, name: str, entry: LocalEntry, revision: str):
        self._name, self._entry = name, entry
        self._device = device.pick(entry.device, f"mllms.{name}.device")
        self._processor, self._model = loading.load(name, entry, revision, self._device)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)  # a text model has no more than that
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        special = zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        self._thinking_tags = {number for token, number in special if replies.THINKING_TAG.fullmatch(token)}
        text_config = self._model.config.get_text_config()
        self._context = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        self._rendered = lru_cache(maxsize=4096)(self._render)
        self._takes = signature(self._model.forward).parameters
        self._model.generation_config = self._greedy()
        self._sequences = lru_cache(maxsize=64)(self._candidate_tokens)

    def abilities(self) -> Abilities:
        return Abilities(images=self._processor is not self._tokenizer, logprobs=True, schema=False)

    def close(self) -> None:
        del self._model
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def answers(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Reply]]]:
        """One group per batch. A batch is all images or all text."""
        for with_image in (True, False):
            positions = [i for i, request in enumerate(requests) if (request.image is not None) == with_image]
            for start in range(0, len(positions), self._entry.batch_size):
                batch = positions[start : start + self._entry.batch_size]
                try:
                    replies = self._some([requests[i] for i in batch], decoding)
                except torch.OutOfMemoryError:
                    raise UserError(
                        f"mllms.{self._name}: {len(batch)} requests at once do not fit into the memory of "
                        f"{self._device}; lower mllms.{self._name}.batch_size."
                    ) from None
                yield list(zip(batch, replies, strict=True))

    def _some(self, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
        """Replies in order. An image that the processor refuses, too long or too small for its patches, is one answer
        that cannot be read, and no reason to stop."""
        try:
            return self._batch(requests, decoding)
        except _RefusedError as refused:
            if len(requests) > 1:
                return [reply for request in requests for reply in self._some([request], decoding)]
            image = requests[0].image
            size = f"of {image.width} x {image.height} pixels " if image else ""
            return [Reply("unparseable", f"the processor refuses the image {size}({refused})")]

    @torch.inference_mode()
    def _batch(self, requests: Sequence[Request], decoding: Decoding) -> list[Reply]:
        """Replies in order; a request that does not fit into the model's context is truncated, and not asked."""
        new_tokens = 1 if decoding.candidates else decoding.max_new_tokens
        inputs = self._inputs(requests)
        lengths = inputs["attention_mask"].sum(1).tolist()
        fits = [length + new_tokens <= self._context for length in lengths]
        if all(fits):
            return self._timed(inputs, lengths, decoding, [request.sample for request in requests])
        rest = [request for request, fit in zip(requests, fits, strict=True) if fit]
        answered = iter(self._batch(rest, decoding) if rest else [])
        reason = f"{{}} tokens and {new_tokens} new ones exceed the model's context of {self._context}"
        return [
            next(answered) if fit else Reply("truncated", reason.format(length), tokens_in=length)
            for length, fit in zip(lengths, fits, strict=True)
        ]

    def _timed(self, inputs: BatchFeature, lengths: list[int], decoding: Decoding, seeds: list[int]) -> list[Reply]:
        start = time.perf_counter()
        if decoding.candidates:
            replies = self._chosen(inputs, decoding.candidates)
        else:
            replies = self._generated(inputs, decoding, seeds)
        seconds = (time.perf_counter() - start) / len(replies)
        return [replace(r, tokens_in=n, seconds=seconds) for r, n in zip(replies, lengths, strict=True)]

    def _greedy(self) -> GenerationConfig:
        """How to write: the likeliest token, whatever the checkpoint's own generation_config asks for (samples, beams,
        penalties, stop words), up to any of its end tokens."""
        own, text = self._model.generation_config, self._model.config.get_text_config()
        ends = {self._tokenizer.eos_token_id, *self._turn_ends()}
        for said in (own.eos_token_id, getattr(text, "eos_token_id", None)):
            ends |= set(said) if isinstance(said, list) else {said}
        known = [number for number in sorted(ends - {None}) if 0 <= number < len(self._tokenizer)]
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=known or None,
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id,
            suppress_tokens=own.suppress_tokens,
        )

    def _turn_ends(self) -> list[int]:
        """The special token that the chat template writes behind an answer; some checkpoints name it nowhere else."""
        answer = "ANSWER"
        content: Any = answer if self._processor is self._tokenizer else [{"type": "text", "text": answer}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            text = self._processor.apply_chat_template(turns, add_generation_prompt=False, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
            return []  # a template that knows no answers
        behind = text.rpartition(answer)[2].lstrip()
        special = sorted(self._tokenizer.all_special_tokens, key=len, reverse=True)
        first = next((token for token in special if behind.startswith(token)), None)
        return [self._tokenizer.convert_tokens_to_ids(first)] if first else []

    # ------------------------------------------------------------------------------------------ in

    def _render(self, text: str, with_image: bool) -> str:
        """The request in the checkpoint's own chat template; control tokens that a user typed are made harmless."""
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        content: Any = [*([{"type": "image"}] if with_image else []), {"type": "text", "text": text}]
        if self._processor is self._tokenizer:
            content = text
        conversation = [{"role": "user", "content": content}]
        try:
            return self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"mllms.{self._name}: the chat template of {self._entry.model} cannot word a question "
                f"({' '.join(str(error).split())[:160]}); correct the template, or choose another checkpoint."
            ) from None

    def _inputs(self, requests: Sequence[Request]) -> BatchFeature:
        """Left-padded token ids and preprocessed images of a batch, on the device."""
        texts = [self._rendered(request.text, request.image is not None) for request in requests]
        begin = self._tokenizer.bos_token
        arguments: dict[str, Any] = {
            "return_tensors": "pt",
            "padding": True,
            "add_special_tokens": not (begin and texts[0].startswith(begin)),
        }
        if requests[0].image is None:
            inputs = BatchFeature(dict(self._tokenizer(texts, **arguments)))
        else:
            images = [[request.image.convert("RGB")] for request in requests if request.image is not None]
            try:
                inputs = self._processor(images=images, text=texts, **arguments)
            except (ValueError, TypeError, ArithmeticError, RuntimeError, IndexError, OSError) as error:
                raise _RefusedError(" ".join(str(error).split())[:160]) from error
        if "token_type_ids" not in self._takes:  # where it is taken, it says which tokens are of an image
            inputs.pop("token_type_ids", None)
        return inputs.to(self._device, dtype=self._model.dtype)

    # ------------------------------------------------------------------------------------------ out

    def _generated(self, inputs: BatchFeature, decoding: Decoding, seeds: list[int]) -> list[Reply]:
        """Greedy or drawn answers; one without its end is truncated, one of logits that are not finite unparseable."""
        prompt_length = inputs["input_ids"].shape[1]
        finite = _Finite()
        drawn = [_Drawn(decoding.temperature, seeds)] if decoding.temperature else []
        output = self._model.generate(
            **inputs,
            max_new_tokens=decoding.max_new_tokens,
            logits_processor=LogitsProcessorList([finite, *drawn]),
        )
        steps = torch.stack(finite.steps, 1).tolist()  # bool [batch, new tokens]
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        replies = []
        for row, is_finite in zip(output[:, prompt_length:].tolist(), steps, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
            if not all(is_finite[:length]):
                replies.append(Reply("unparseable", NOT_FINITE + self._remedy, tokens_out=length or len(row)))
                continue
            text = self._text(row[:length])
            replies.append(Reply("truncated" if length is None else "valid", text, tokens_out=length or len(row)))
        return replies

    def _text(self, tokens: list[int]) -> str:
        """What was written, without special tokens; but tags of thinking stay, by which it is found and taken out."""
        runs = groupby(tokens, self._thinking_tags.__contains__)
        return "".join(self._tokenizer.decode(list(run), skip_special_tokens=not tags) for tags, run in runs).strip()

    def _chosen(self, inputs: BatchFeature, candidates: tuple[str, ...]) -> list[Reply]:
        """Probabilities of the candidates as answers: the summed probabilities of all their spellings in tokens."""
        output = self._next(**inputs)
        first = output.logits[0].float().log_softmax(-1)
        reach: dict[Tokens, Tensor] = {(): torch.zeros_like(first[:, 0])}  # log P of a beginning, [batch]
        following: dict[Tokens, Tensor] = {(): first}  # log P of the next token after it, [batch, vocabulary]
        spellings = self._sequences(candidates)
        sequences = {sequence for some in spellings.values() for sequence in some}
        for prefix in sorted({s[:n] for s in sequences for n in range(1, len(s))}, key=len):
            if prefix[:-1] not in following:
                continue
            reach[prefix] = reach[prefix[:-1]] + following[prefix[:-1]][:, prefix[-1]]
            if not (reach[prefix].exp() < MIN_PREFIX).all():  # NaN is followed, so that it is not lost
                following[prefix] = self._continued(inputs, output.past_key_values, prefix)

        def probability(sequence: Tokens) -> Tensor:
            prefix = sequence[:-1]
            if prefix not in following:
                return torch.zeros_like(reach[()])
            unlikely = reach[prefix].exp() < MIN_PREFIX
            return torch.where(unlikely, 0.0, (reach[prefix] + following[prefix][:, sequence[-1]]).exp())

        whole = {sequence: probability(sequence) for sequence in sequences}
        masses = {}
        for candidate, some in spellings.items():
            longer = {s for s in sequences - some if any(s[: len(own)] == own for own in some)}
            mass = sum(whole[s] for s in some) - sum(whole[s] for s in longer)  # "1" is not the beginning of "10"
            masses[candidate] = torch.as_tensor(mass).clamp(min=0).tolist()
        texts = self._tokenizer.batch_decode(first.argmax(-1, keepdim=True))
        return [
            chosen({candidate: mass[row] for candidate, mass in masses.items()}, text.strip(), self._remedy)
            for row, text in enumerate(texts)
        ]

    @property
    def _remedy(self) -> str:
        """What to do about probabilities that are not finite."""
        dtype = self._entry.dtype
        if dtype not in WIDER:
            return f" in {dtype}: the checkpoint itself is broken"
        return f" in {dtype}: try dtype {WIDER[dtype]} (mllms.{self._name}.dtype)"

    def _next(self, **inputs: Any) -> Any:
        """One step of generation: its logits and the cache of what was read."""
        return self._model.generate(
            **inputs,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )

    def _continued(self, inputs: BatchFeature, cache: Any, prefix: Tokens) -> Tensor:
        """Log P of the token after the request and `prefix`, float [batch, vocabulary]."""
        more = torch.tensor(prefix, device=self._device).expand(len(inputs["input_ids"]), -1)
        output = self._next(
            input_ids=torch.cat([inputs["input_ids"], more], 1),
            attention_mask=torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1),
            past_key_values=copy.deepcopy(cache),
        )
        return output.logits[0].float().log_softmax(-1)

    def _candidate_tokens(self, candidates: tuple[str, ...]) -> dict[str, frozenset[Tokens]]:
        """Every way to write each candidate in tokens: with a space before it or none, with a capital or none."""
        spellings = {}
        for candidate in candidates:
            forms = {before + word for before in ("", " ") for word in (candidate, candidate.capitalize())}
            ids = {tuple(self._tokenizer.encode(form, add_special_tokens=False)) for form in forms}
            ids |= {(token,) for form in forms if (token := self._single_token(form)) is not None}
            spellings[candidate] = frozenset(i for i in ids if i)
        return spellings

    def _single_token(self, form: str) -> int | None:
        """The token that is this very text: SentencePiece and byte-level vocabularies hold words with their space."""
        vocabulary = self._tokenizer.get_vocab()
        spelt = [form.replace(" ", mark) for mark in ("\u2581", "\u0120")]
        return next((vocabulary[text] for text in spelt if text in vocabulary), None)
