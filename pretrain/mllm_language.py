"""Train the language part of a tiny MLLM on the frozen tower's features: many questions about one picture at a time.

    PYTHONPATH=src python pretrain/mllm_language.py --model mllm

A row of a batch is `<|user|>` + 16 image tokens, shared by a dozen questions that cannot see each other (a four-
dimensional mask; positions start again after the picture), or several text-only requests. Besides the answers, the
end of every telling phrase of a caption is trained to say yes or no: is this so far true of the picture? Writes
`models/postcards/{model}/`, a LlavaForConditionalGeneration with its LlavaProcessor.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mllm_features import load_asked, load_scenes
from mllm_model import (
    ASSISTANT,
    END,
    IMAGE,
    IMAGE_TOKENS,
    USER,
    build_model,
    make_processor,
    save_model,
    train_tokenizer,
)
from mllm_muon import make_optimisers
from mllm_questions import Question, picture_questions, text_question
from mllm_recipe import read_model_recipe
from mllm_tower import label_scenes, regions_of_tokens
from recipe import Recipe, forget_checkpoint, load_checkpoint, save_checkpoint, set_rate, training_steps, trapezoid
from safetensors.torch import load_file
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast, SwinModel

from t2i_feedback.datasets.postcards.captions import COLUMN_WORDS, PLACES
from t2i_feedback.datasets.postcards.world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, SIZES, Scene

IGNORED = -100  # no target here
REQUESTS = 7  # of a text-only row: about as long as the questions about a picture


@dataclass
class Source:
    """Pictures as the tower saw them, and what they show."""

    tokens: torch.Tensor  # float16 [N, 16, C]
    levels: torch.Tensor  # [N, 3]
    scene: torch.Tensor  # [N], rows of `scenes`
    scenes: list[Scene]
    asked: list[tuple[str, Scene]]  # the caption each was meant to show and its facts; empty for renders

    @classmethod
    def load(cls, recipe: Recipe, features: Path, name: str) -> "Source":
        seen = load_file(features / f"{name}.safetensors")
        return cls(**seen, scenes=load_scenes(recipe.work, name), asked=load_asked(recipe.work, name))

    def questions(self, row: int, rng: random.Random, easy: float) -> list[Question]:
        """Questions about the picture of one row."""
        index = int(self.scene[row])
        asked = self.asked[index] if self.asked else None
        return picture_questions(self.scenes[index], tuple(self.levels[row].tolist()), rng, easy, asked)


@dataclass
class Batch:
    """Packed rows: R rows of L tokens."""

    ids: torch.Tensor  # [R, L]
    positions: torch.Tensor  # [R, L]
    branch: torch.Tensor  # [R, L]; 0 is the shared prefix, -1 padding
    targets: torch.Tensor  # [R, L]; the token that each position should say next
    weights: torch.Tensor  # [R, L]
    pictures: int  # the first rows that begin with a picture


class Packer:
    """Turns questions into token rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, weights: dict):
        self.tokenizer, self.weights = tokenizer, weights
        self.user, self.image, self.assistant, self.end = tokenizer.convert_tokens_to_ids([USER, IMAGE, ASSISTANT, END])
        self.yes, self.no = (tokenizer(word).input_ids[0] for word in ("yes", "no"))
        self.ids_of: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self.ids_of:
            self.ids_of[text] = self.tokenizer(text).input_ids
        return self.ids_of[text]

    def _branch(self, question: Question) -> tuple[list[int], list[int], list[float]]:
        """Ids, targets and weights of one question with its answer."""
        encoded = self.tokenizer(question.text, return_offsets_mapping=True)
        ids = encoded.input_ids
        targets, weights = [IGNORED] * len(ids), [0.0] * len(ids)
        at = {end: index for index, (_, end) in enumerate(encoded.offset_mapping)}
        for end, true in question.marks:
            if end in at:
                targets[at[end]], weights[at[end]] = (self.yes if true else self.no), self.weights["mark"]
        answer = self._ids(question.answer)
        weight = self.weights["verdict"] if question.answer in ("yes", "no") else self.weights["word"]
        targets += [*answer, self.end]
        weights += [weight] + [self.weights["word"]] * len(answer)
        return [*ids, self.assistant, *answer], targets, weights

    def pack(self, rows: list[list[Question]], pictures: int) -> Batch:
        """Rows of questions; the first `pictures` rows begin with a picture."""
        packed = []
        for index, questions in enumerate(rows):
            prefix = [self.user] + ([self.image] * IMAGE_TOKENS if index < pictures else [])
            start = len(prefix)
            row = [(token, place, 0, IGNORED, 0.0) for place, token in enumerate(prefix)]
            for number, question in enumerate(questions, 1):
                branch = zip(*self._branch(question), strict=True)
                row += [(i, start + place, number, t, w) for place, (i, t, w) in enumerate(branch)]
            packed.append(row)
        length = max(map(len, packed))
        filler = (self.tokenizer.pad_token_id, 0, -1, IGNORED, 0.0)
        table = [row + [filler] * (length - len(row)) for row in packed]
        ids, positions, branch, targets = (torch.tensor([[cell[k] for cell in row] for row in table]) for k in range(4))
        weights = torch.tensor([[cell[4] for cell in row] for row in table])
        return Batch(ids, positions, branch, targets, weights, pictures)


def attention_mask(branch: torch.Tensor) -> torch.Tensor:
    """Additive mask [R, 1, L, L]: look back at the prefix and at one's own branch only."""
    length = branch.shape[1]
    seen = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def batch_loss(model: LlavaForConditionalGeneration, batch: Batch, tokens: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Weighted cross-entropy of a batch with standardised picture tokens [pictures, 16, C], and what is right of it."""
    embedded = model.get_input_embeddings()(batch.ids)
    images = model.model.multi_modal_projector(tokens)
    with_picture = torch.cat(
        [embedded[: batch.pictures, :1], images, embedded[: batch.pictures, 1 + IMAGE_TOKENS :]], 1
    )
    embedded = torch.cat([with_picture, embedded[batch.pictures :]])
    mask = attention_mask(batch.branch)
    hidden = model.model.language_model(
        inputs_embeds=embedded, position_ids=batch.positions, attention_mask=mask, use_cache=False
    )[0]
    asked = batch.targets != IGNORED
    logits, targets, weights = model.lm_head(hidden[asked]), batch.targets[asked], batch.weights[asked]
    losses = F.cross_entropy(logits, targets, reduction="none")
    right = logits.argmax(-1) == targets
    return (losses * weights).sum() / weights.sum(), {"right": right, "weights": weights}


def align(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, source: Source, mean, std, params: dict
) -> None:
    """Pull projected picture tokens toward the embeddings of the words for what stands in their region."""
    words: dict[str, list[str]] = {"kind": list(KINDS), "colour": list(COLOURS), "size": list(SIZES)}
    words["column"] = [COLUMN_WORDS[column][0] for column in COLUMNS]
    words["background"] = [PLACES[background][1][0] for background in BACKGROUNDS]
    ids = {
        name: torch.tensor([tokenizer(f" {value}").input_ids[0] for value in values]) for name, values in words.items()
    }
    regions = regions_of_tokens()
    labels = label_scenes(source.scenes)
    embeddings = model.get_input_embeddings().weight
    trained = [*model.model.multi_modal_projector.parameters(), embeddings]
    optimiser = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(params["seed"])
    for _ in range(params["align_steps"]):
        index = torch.randint(len(source.tokens), (64,), generator=generator)
        scene = labels.take(source.scene[index])
        projected = model.model.multi_modal_projector((source.tokens[index].float() - mean) / std)
        direction = F.normalize(projected, dim=-1)
        wanted = {
            "kind": scene.kind[:, regions] - 1,
            "colour": scene.colour[:, regions],
            "size": scene.size[:, regions],
            "background": scene.background[:, None].expand(-1, IMAGE_TOKENS),
            "column": (regions % 3).expand(len(index), -1),
        }
        loss = 0.05 * (projected.norm(dim=-1) / embeddings.norm(dim=-1).mean().detach() - 2).square().mean()
        for name, target in wanted.items():
            scores = 12 * direction @ F.normalize(embeddings[ids[name]], dim=-1).T
            loss = loss + F.cross_entropy(scores.flatten(0, 1), target.flatten(), ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"aligned, loss {loss.item():.3f}", flush=True)


def train(recipe: Recipe) -> None:
    """Train, save every now and then, go on from the last checkpoint after an interruption."""
    params = recipe.params
    name = recipe.section.removesuffix("_language")
    features = recipe.work / "mllm" / f"{name}_features"
    renders, drawn = Source.load(recipe, features, "renders"), None
    mean, std = (f(renders.tokens[:4000].float(), dim=(0, 1)) for f in (torch.mean, torch.std))
    torch.manual_seed(params["seed"])
    tower = SwinModel.from_pretrained(recipe.work / "mllm" / f"{name}_tower", add_pooling_layer=False)
    saved = load_checkpoint(recipe.checkpoint)
    if saved:
        processor = LlavaProcessor.from_pretrained(recipe.models / name)
    else:
        processor = make_processor(train_tokenizer(params["seed"], params["vocabulary"]))
    tokenizer = processor.tokenizer
    model = build_model(tower, tokenizer, params["text"])
    model.model.vision_tower.requires_grad_(False)
    packer = Packer(tokenizer, params["weights"])
    optimisers = make_optimisers(model, params["learning_rate"])
    first = 0
    if saved:
        first = saved["step"]
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    else:
        align(model, tokenizer, renders, mean, std, params)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pictures = params["pictures"]
    log: list[tuple[float, float, float]] = []
    for step in training_steps(recipe, first):
        rng = random.Random(f"{params['seed']}/{step}")
        easy = max(0.25, params["easy"] * (1 - step / params["easy_steps"]))
        if drawn is None and step >= params["drawn_from"]:
            drawn = Source.load(recipe, features, "drawn")
        rows, tokens = [], []
        for _ in range(pictures):
            source = drawn if drawn and rng.random() < params["drawn_share"] else renders
            row = rng.randrange(len(source.tokens))
            rows.append(source.questions(row, rng, easy))
            tokens.append(source.tokens[row])
        rows += [[text_question(rng) for _ in range(REQUESTS)] for _ in range(params["text_rows"])]
        batch = packer.pack(rows, pictures)
        shown = (torch.stack(tokens).float() - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            loss, seen = batch_loss(model, batch, shown)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimiser in optimisers:
            set_rate(optimiser, trapezoid(step, params["steps"], params["learning_rate"]))
            optimiser.step()
            optimiser.zero_grad()
        verdict, mark = (
            seen["right"][seen["weights"] == params["weights"][kind]].float().mean() for kind in ("verdict", "mark")
        )
        log.append((loss.item(), verdict.item(), mark.item()))
        if (step + 1) % params["log_every"] == 0:
            values = [sum(column) / len(log) for column in zip(*log, strict=True)]
            log.clear()
            print(
                "\nstep {} loss {:.3f} verdicts right {:.3f} marks right {:.3f}".format(step + 1, *values), flush=True
            )
        if (step + 1) % params["checkpoint_every"] == 0:
            state = {"step": step + 1, "model": model.state_dict()}
            save_checkpoint(recipe.checkpoint, state | {"optimisers": [o.state_dict() for o in optimisers]})
            save_model(model, processor, mean, std, recipe.models / name)
    save_model(model, processor, mean, std, recipe.models / name)
    forget_checkpoint(recipe.checkpoint)


def main() -> None:
    train(read_model_recipe(__doc__, "language"))


if __name__ == "__main__":
    main()
