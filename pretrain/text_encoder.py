"""Train the image model's tokenizer on captions, and its text encoder to understand them before it sees a picture.

    PYTHONPATH=src python pretrain/text_encoder.py

Writes `pretrain/work/tokenizer/`, `pretrain/work/text_encoder/` (a CLIPTextModel) and
`pretrain/work/captions.safetensors` (`ids`, int16 [scenes, captions per scene, tokens]). The supervised warm start
predicts from the end-of-text state which kinds a caption names and what it says of each. It saves the UNet's training
from having to find grammar by denoising.
"""

import json
import random

import torch
import torch.nn.functional as F
from pictures import load_renders
from recipe import (
    Recipe,
    cosine,
    forget_checkpoint,
    load_checkpoint,
    read_recipe,
    save_checkpoint,
    set_rate,
    training_steps,
)
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Generator, Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from t2i_feedback.datasets.postcards.captions import caption, remarks
from t2i_feedback.datasets.postcards.world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, SIZES, Scene

IGNORED = -100  # label of what must not be asked
ATTRIBUTES = {"colour": tuple(COLOURS), "size": SIZES, "column": COLUMNS}
HEADS = (2, *(1 + len(words) for words in ATTRIBUTES.values()))  # named or not; each attribute with "open" as class 0


def write_caption(
    scene: Scene, rng: random.Random, shares: dict[str, float], remark_share: float
) -> tuple[str, Scene, bool]:
    """A caption of a random level, the facts that it states, and whether true remarks were put behind it."""
    text, facts = caption(scene, rng, rng.choices(list(shares), list(shares.values()))[0])
    remarked = rng.random() < remark_share
    if remarked:
        text = ", ".join([text, *rng.sample(remarks(scene), rng.choice((1, 2)))])
    return text, facts, remarked


def encode_facts(facts: Scene, remarked: bool) -> list[int]:
    """Labels of a caption: background, then named?, colour, size, column for every kind.

    A kind that is named twice is not asked for details; nor, after remarks, is what the caption itself left open.
    """
    open_label = IGNORED if remarked else 0
    labels = [open_label if facts.background is None else 1 + BACKGROUNDS.index(facts.background)]
    for kind in KINDS:
        things = [thing for thing in facts.things if thing.kind == kind]
        labels.append(int(bool(things)))
        for attribute, words in ATTRIBUTES.items():
            value = getattr(things[0], attribute) if things else None
            asked = open_label if value is None else 1 + words.index(value)
            labels.append(asked if len(things) == 1 else IGNORED)
    return labels


def build_tokenizer(texts: list[str], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer (lower case, byte-level BPE with `</w>`) with a vocabulary learnt from `texts`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in [byte + "</w>" for byte in alphabet] + ["<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))  # every byte may end a word: nothing is unknown
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]], model_max_length=length)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """int64 [texts, model_max_length], padded as StableDiffusionPipeline pads."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def build_text_encoder(tokenizer: CLIPTokenizer, p: dict) -> CLIPTextModel:
    """A small CLIPTextModel for this tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=p["width"],
        intermediate_size=2 * p["width"],
        num_hidden_layers=p["layers"],
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        projection_dim=p["width"],
    )
    return CLIPTextModel(config)


class CaptionReader(nn.Module):
    """The text encoder and a linear head on its end-of-text state."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 1 + len(BACKGROUNDS) + len(KINDS) * sum(HEADS))

    def forward(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """ids [B, T] -> logits of the background [B, 8] and, for each entry of HEADS, [B, kinds, classes]."""
        ends = (ids == self.encoder.config.eos_token_id).int().argmax(1)
        states = self.encoder(input_ids=ids[:, : int(ends.max()) + 1]).last_hidden_state
        background, kinds = self.head(states[torch.arange(len(ids)), ends]).tensor_split([1 + len(BACKGROUNDS)], dim=1)
        return background, kinds.view(len(ids), len(KINDS), -1).split(HEADS, dim=-1)


def understanding(reader: CaptionReader, ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The summed cross-entropies, and the share of right answers for each head."""
    background, kinds = reader(ids)
    asked = labels[:, 1:].view(len(ids), len(KINDS), -1)
    pairs = {"background": (background, labels[:, 0])}
    pairs |= {
        name: (logits.flatten(0, 1), asked[..., i].flatten())
        for i, (name, logits) in enumerate(zip(("kind", *ATTRIBUTES), kinds, strict=True))
    }
    loss = torch.stack(
        [F.cross_entropy(logits, wanted, ignore_index=IGNORED) for logits, wanted in pairs.values()]
    ).sum()
    right = {
        name: round(float((logits.argmax(-1) == wanted)[wanted != IGNORED].float().mean()), 4)
        for name, (logits, wanted) in pairs.items()
    }
    return loss, right


def train(recipe: Recipe, encoder: CLIPTextModel, ids: Tensor, labels: Tensor) -> CaptionReader:
    """Train on ids [N, T] and labels [N, L], from the last checkpoint or from the beginning."""
    p = recipe.params
    generator = Generator().manual_seed(p["seed"])
    reader = CaptionReader(encoder)
    optimiser = torch.optim.AdamW(reader.parameters(), p["learning_rate"], weight_decay=0.01, fused=True)
    first = 0
    if state := load_checkpoint(recipe.checkpoint):
        first = state["step"]
        reader.load_state_dict(state["reader"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
    for step in training_steps(recipe, first):
        set_rate(optimiser, cosine(step, p["steps"], p["learning_rate"]))
        index = torch.randint(0, len(ids), (p["batch"],), generator=generator)
        loss, right = understanding(reader, ids[index].long(), labels[index])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % p["checkpoint_every"] == 0:
            modules = {"reader": reader.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(recipe.checkpoint, modules | {"generator": generator.get_state(), "step": step + 1})
            print(f"step {step + 1}: loss {loss.item():.3f} {right}", flush=True)
    return reader


def main() -> None:
    recipe = read_recipe(__doc__, "text_encoder")
    p = recipe.params
    torch.manual_seed(p["seed"])
    rng = random.Random(p["seed"])
    _, scenes = load_renders(recipe.work / "renders")
    rows = [write_caption(scene, rng, p["levels"], p["remark_share"]) for scene in scenes for _ in range(p["captions"])]
    tokenizer = build_tokenizer([text for text, _, _ in rows[:30000]], p["tokens"])
    tokenizer.save_pretrained(recipe.work / "tokenizer")
    ids = torch.cat(
        [tokenize(tokenizer, [text for text, _, _ in rows[i : i + 2000]]) for i in range(0, len(rows), 2000)]
    ).short()
    save_file({"ids": ids.view(len(scenes), p["captions"], -1)}, recipe.work / "captions.safetensors")
    lengths = (ids != tokenizer.eos_token_id).sum(1) + 1
    print(f"{len(tokenizer)} tokens in the vocabulary; captions of up to {int(lengths.max())} tokens", flush=True)

    labels = torch.tensor([encode_facts(facts, remarked) for _, facts, remarked in rows])
    reader = train(recipe, build_text_encoder(tokenizer, p), ids, labels)
    reader.encoder.save_pretrained(recipe.work / "text_encoder")
    forget_checkpoint(recipe.checkpoint)
    _, held_out = load_renders(recipe.work / "renders", "val_")
    rows = [write_caption(scene, rng, p["levels"], p["remark_share"]) for scene in held_out]
    with torch.no_grad():
        labels = torch.tensor([encode_facts(facts, remarked) for _, facts, remarked in rows])
        print(
            "captions of held-out scenes:",
            understanding(reader.eval(), tokenize(tokenizer, [row[0] for row in rows]), labels)[1],
        )


if __name__ == "__main__":
    main()
