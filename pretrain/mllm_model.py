"""Build a tiny LLaVA: a trained Swin tower, a small Llama, its own tokenizer and the processor; and save it."""

import json
import random
import re
from pathlib import Path

import torch
from mllm_questions import (
    DESCRIBE,
    ENHANCE,
    FEEDBACK,
    IS_THERE,
    JUDGE,
    LIST,
    PAPER_PREFERENCE,
    PARAPHRASES,
    VALIDATE,
    enhance_question,
    judge_question,
    list_question,
    picture_questions,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
    SwinModel,
)

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, PLACES
from t2i_feedback.datasets.postcards.world import SIDE, sample_scene

IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<pad>"
IMAGE_TOKENS = 16
MAX_POSITIONS = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def fixed_phrases() -> list[str]:
    """Phrases that are one piece of text to the tokenizer: places, columns and the roles' words, the longest first."""
    phrases = {phrase for wheres, nouns, extra in PLACES.values() for phrase in (*wheres, *nouns, extra)}
    phrases |= {phrase for words in COLUMN_WORDS.values() for phrase in words}
    templates = [
        VALIDATE,
        FEEDBACK,
        JUDGE,
        ENHANCE,
        DESCRIBE,
        LIST,
        IS_THERE,
        *(text for texts in PARAPHRASES.values() for text in texts),
    ]
    phrases |= {part.strip() for template in templates for part in template.split("{}") if len(part.split()) > 1}
    phrases |= {"hot air balloon", "there is", "Last time:", "nothing else", "images that have", "images that are"}
    return sorted(phrases, key=lambda phrase: (-len(phrase), phrase))


def train_tokenizer(seed: int, vocabulary: int, samples: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over questions and answers; fixed phrases may become one token, other text splits at words."""
    rng = random.Random(seed)
    texts: list[str] = [PAPER_PREFERENCE] * 200
    for _ in range(samples):
        scene, levels = sample_scene(rng, "train"), (rng.random(), rng.random(), rng.random())
        questions = picture_questions(scene, levels, rng, easy=0.3)
        questions += [enhance_question(rng), list_question(rng), judge_question(levels, rng)]
        texts += [text for question in questions for text in (question.text, question.answer)]
    texts += [str(score) for score in range(1, 11)] * samples
    either = "|".join(re.escape(phrase) for phrase in fixed_phrases())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?(?:{either})(?!\w)| ?\w+| ?[^\w\s]|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, END, USER, ASSISTANT, IMAGE]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        extra_special_tokens={"image_token": IMAGE},
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """64 x 64 pixels to -1..1, and 16 image tokens for each picture (one for every 16 x 16 pixels)."""
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(
        size=side, do_center_crop=False, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=SIDE // 4,
        num_additional_image_tokens=0,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def build_model(
    tower: SwinModel | dict, tokenizer: PreTrainedTokenizerFast, text: dict
) -> LlavaForConditionalGeneration:
    """A LLaVA with a fresh language model; `text` overrides LlamaConfig, `tower` is a trained tower or its config."""
    vision = tower.config if isinstance(tower, SwinModel) else SwinConfig(**tower)
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.07,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        **text,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    if isinstance(tower, SwinModel):
        model.model.vision_tower.load_state_dict(tower.state_dict(), strict=False)
    with torch.no_grad():
        for layer in model.model.language_model.layers:  # keys that begin like the queries find equal words at once
            layer.self_attn.q_proj.weight.normal_(0, text["hidden_size"] ** -0.5)
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@torch.no_grad()
def save_model(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, mean: torch.Tensor, std: torch.Tensor, folder: Path
) -> None:
    """Save in half precision, with the standardisation of the tower's features ([C] each) folded into the projector.

    The config says float32, so that loading without a dtype computes in float32 on processors.
    """
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    first = half.model.multi_modal_projector.linear_1
    first.bias.sub_(first.weight @ (mean / std))
    first.weight.div_(std)
    half.generation_config = model.generation_config
    half.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    config["vision_config"].pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
