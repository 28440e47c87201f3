"""Tiny random checkpoints of the families of MLLMs that people use: other towers, image tokens and position codes."""

from collections.abc import Callable
from pathlib import Path

import torch
from shared_checkpoints import CHAT_TEMPLATE, CORPUS, build_llava
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
IMAGE_PLACE = "<image>\n"  # what the chat template of conftest writes for an image


def tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level, in which "10" is two tokens; padded on the right, as many checkpoints are.

    Special tokens that are `named` are attributes of the tokenizer: image_token="<image>".
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        padding_side="right",
        extra_special_tokens=named or None,
    )


def build_llava_next(folder: Path) -> Path:
    """LLaVA 1.6: an image is cut into tiles by its shape, so images differ in their number of tokens."""
    words = tokenizer("<image>")
    size = {"height": 32, "width": 32}
    grid = [[32, 64], [64, 32], [64, 64]]
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=grid, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
        text_config=LlamaConfig(vocab_size=len(words), **LLAMA),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    return _save(folder, LlavaNextForConditionalGeneration, config, processor)


def build_idefics3(folder: Path) -> Path:
    """SmolVLM's architecture: sub-images with row and column tokens, an image for each."""
    words = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=CHAT_TEMPLATE)
    config = Idefics3Config(
        vision_config=VISION,
        text_config=LlamaConfig(vocab_size=len(processor.tokenizer), **LLAMA),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return _save(folder, Idefics3ForConditionalGeneration, config, processor)


def build_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: images of any size, and positions in three dimensions."""
    words = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    sizes = {"min_pixels": 28 * 28, "max_pixels": 112 * 112, "patch_size": 14, "merge_size": 2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        words,
        Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE.replace(IMAGE_PLACE, "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config={
            **LLAMA,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_config=vision,
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return _save(folder, Qwen2VLForConditionalGeneration, config, processor)


def build_gemma3(folder: Path) -> Path:
    """Gemma 3: the tokens of an image see each other in both directions, which token types tell."""
    special = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(*special.values(), **special)
    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = Gemma3Processor(
        images, words, image_seq_length=4, chat_template=CHAT_TEMPLATE.replace(IMAGE_PLACE, "<start_of_image>")
    )
    text = {key: value for key, value in LLAMA.items() if key != "initializer_range"}
    config = Gemma3Config(
        text_config={**text, "vocab_size": len(words), "head_dim": 16, "initializer_range": 0.3},
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    return _save(folder, Gemma3ForConditionalGeneration, config, processor)


def build_text_model(folder: Path, *special: str) -> Path:
    """A language model that takes no images."""
    words = tokenizer(*special)
    words.add_special_tokens({"additional_special_tokens": list(special)})
    words.chat_template = (
        "{% for message in messages %}{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    return _save(folder, LlamaForCausalLM, LlamaConfig(vocab_size=len(words), **LLAMA), words)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava15": build_llava,
    "llava16": build_llava_next,
    "idefics3": build_idefics3,
    "qwen2vl": build_qwen2_vl,
}


def _save(folder: Path, kind, config, processor) -> Path:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
