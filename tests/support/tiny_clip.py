"""A CLIP of a few thousand random weights, saved as the hub has them."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

SIDE = 32  # pixels


def save(folder: Path, seed: int = 0) -> Path:
    """Model, tokenizer and image processor; letters are tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for code in range(97, 123):
        for token in (chr(code), f"{chr(code)}</w>"):
            vocabulary[token] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(seed)
    model = CLIPModel(
        CLIPConfig(
            text_config=text | {"max_position_embeddings": 77},
            vision_config=size | {"image_size": SIDE, "patch_size": 8},
            projection_dim=12,
        )
    )
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
