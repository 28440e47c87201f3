"""The pre-training of the MLLMs, on tiny sizes, leaves LLaVAs that load and answer."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from pretraining import interrupt, run
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor


@pytest.mark.parametrize("name", ["mllm", "judge"])
def test_a_llava_loads_and_answers_batches_of_mixed_lengths_as_it_answers_one(pretrained: Path, name: str) -> None:
    processor = AutoProcessor.from_pretrained(pretrained / "models/postcards" / name)
    model = AutoModelForImageTextToText.from_pretrained(pretrained / "models/postcards" / name).eval()
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert model.dtype == torch.float32
    picture = Image.new("RGB", (64, 64), (200, 30, 60))

    def ask(*texts: str) -> dict:
        content = [[{"type": "image", "image": picture}, {"type": "text", "text": text}] for text in texts]
        return processor.apply_chat_template(
            [[{"role": "user", "content": parts}] for parts in content],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    texts = ("Describe this picture.", "Does this picture show a small red house on the left and a yellow sun?")
    with torch.no_grad():
        together = model(**ask(*texts)).logits[:, -1]
        alone = torch.stack([model(**ask(text)).logits[0, -1] for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    inputs = ask(*texts)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 2


def test_answers_are_single_tokens(pretrained: Path) -> None:
    tokenizer = AutoProcessor.from_pretrained(pretrained / "models/postcards/mllm").tokenizer
    for answer in ("yes", "no", *map(str, range(1, 11))):
        assert len(tokenizer(answer, add_special_tokens=False).input_ids) == 1


def test_saved_in_half_precision(pretrained: Path) -> None:
    weights = load_file(pretrained / "models/postcards/mllm/model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}


def test_the_language_part_goes_on_from_its_checkpoint(pretrained: Path) -> None:
    interrupt(pretrained, "mllm_language --model mllm", after=2)
    printed = run(pretrained, "mllm_language --model mllm")
    assert "mllm_language: 3 pictures" in printed  # one of three steps of a batch of three
