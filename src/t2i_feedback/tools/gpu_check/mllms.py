"""A LLaVA 1.5 of 7 B parameters with random weights, through the backend `local`: batches of questions, and texts."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from t2i_feedback import params
from t2i_feedback.mllm import checkpoint
from t2i_feedback.mllm.backends.local import LocalEntry
from t2i_feedback.mllm.base import NOT_FINITE, Decoding, Reply, Request
from t2i_feedback.mllm.local import LocalMllm
from t2i_feedback.tools.gpu_check.measuring import watched
from t2i_feedback.tools.gpu_check.results import Phases
from t2i_feedback.tools.reckoning.counting import size
from t2i_feedback.tools.reckoning.networks import default_dtype

ENTRY = "llava15-7b"
SOURCE = "https://huggingface.co/llava-hf/llava-1.5-7b-hf"
BATCHES = 2
WRITTEN = 32  # tokens of a text
SIDE = 512  # pixels of an image that is shown
TEXT: dict[str, Any] = {
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}  # the rest is Llama's default
TOWER: dict[str, Any] = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
}
TOWER |= {"num_hidden_layers": 24, "num_attention_heads": 16}
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = "How much do you like this picture of a red house by the sea? Answer by a number from 1 to 9."
CANDIDATES = tuple("123456789")


def asked(device: str) -> Phases:
    entry = params.load().mllms[ENTRY]
    assert isinstance(entry, LocalEntry)
    config = llava(tiny=device == "cpu")
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
        weights = size(model.to(getattr(torch, entry.dtype))) / 1e9
    yield "reckoned", {"load": weights}
    with random_checkpoint(config, device) as folder:
        entry = entry.model_copy(update={"model": str(folder), "device": device})
        with watched(device) as loading:
            mllm = LocalMllm(ENTRY, entry, checkpoint.revision(ENTRY, entry))
        yield "load", loading | {"weights_gb": weights, "source": SOURCE}
    pixels = np.random.default_rng(0).integers(0, 256, (BATCHES * entry.batch_size, SIDE, SIDE, 3), dtype=np.uint8)
    requests = [Request(QUESTION, Image.fromarray(one)) for one in pixels]
    candidates = Decoding(1, CANDIDATES)
    replies(mllm, requests[: entry.batch_size], candidates)  # the first takes what libraries do once
    with watched(device) as questions:
        found = replies(mllm, requests, candidates)
    alone = replies(mllm, requests[:1], candidates)[0]
    rate = len(requests) / float(questions["seconds"])
    questions |= {"questions_per_second": rate, "batch_size": entry.batch_size, "tokens_in": alone.tokens_in}
    questions |= {"all_finite": not any(NOT_FINITE in reply.text for reply in found)}
    if found[0].mass and alone.mass:
        questions["apart_from_alone"] = abs(found[0].mass / alone.mass - 1)
    yield "questions", questions
    texts = [Request(f"{QUESTION} {number}") for number in range(entry.batch_size)]
    with watched(device) as written:
        answers = replies(mllm, texts, Decoding(WRITTEN))
    tokens = sum(reply.tokens_out for reply in answers)
    rates = {"texts_per_second": len(texts) / float(written["seconds"])}
    yield "texts", written | rates | {"tokens_per_second": tokens / float(written["seconds"])}


def replies(mllm: LocalMllm, requests: list[Request], decoding: Decoding) -> list[Reply]:
    """In the order of the requests."""
    found = dict(one for group in mllm.answers(requests, decoding) for one in group)
    return [found[position] for position in range(len(requests))]


def llava(tiny: bool) -> LlavaConfig:
    return LlavaConfig(
        text_config=LlamaConfig(**TEXT, **(TINY if tiny else {}), pad_token_id=SPECIAL.index("<pad>")),
        vision_config=CLIPVisionConfig(**TOWER | (TINY if tiny else {})),
        image_token_index=SPECIAL.index("<image>"),  # the published one's is 32000, of its own vocabulary
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
    )


@contextmanager
def random_checkpoint(config: LlavaConfig, device: str) -> Iterator[Path]:
    """A folder that is loaded as a checkpoint, and has random weights, which are made on the device."""

    def random(where: str, *, dtype: torch.dtype, **given: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(device), default_dtype(dtype):
            return LlavaForConditionalGeneration(config)

    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(AutoModelForImageTextToText, "from_pretrained", random),
    ):
        config.save_pretrained(name)
        processor().save_pretrained(name)
        (Path(name) / "model.safetensors").touch()
        yield Path(name)


def processor() -> LlavaProcessor:
    """Reads byte by byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({token: number for number, token in enumerate([*SPECIAL, *alphabet])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, **named, extra_special_tokens={"image_token": "<image>"}
    )
    side = TOWER["image_size"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=TOWER["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
