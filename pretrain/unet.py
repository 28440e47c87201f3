"""Train the image model's UNet, with the text encoder, on the latents of the rendered pictures.

    PYTHONPATH=src python pretrain/unet.py

Writes a complete StableDiffusionPipeline to `models/postcards/sd` (fp16 safetensors), and on the way, at `draft_step`,
an unfinished one, which ends up in `pretrain/work/draft` and whose pictures the MLLMs learn to look at. An interrupted
training goes on from its last checkpoint.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from mllm_muon import Muon
from pictures import load_renders
from recipe import (
    Recipe,
    forget_checkpoint,
    load_checkpoint,
    read_recipe,
    save_checkpoint,
    set_rate,
    training_steps,
    trapezoid,
)
from safetensors.torch import load_file
from text_encoder import tokenize
from torch import Generator, Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from t2i_feedback.datasets.postcards.world import COLUMN_X, GROUND_Y, SCALE, SIDE, SKY_Y, Scene

LATENT_SIDE = 16
FACTOR = SIDE // LATENT_SIDE


def build_unet(widths: list[int], text_width: int) -> UNet2DConditionModel:
    """Convolutions at 16 x 16, cross-attention at 8 x 8 and 4 x 4, and the pooled text added to the time embedding.

    Where a thing stands, and that there is only one of it, is decided at 4 x 4: without attention there, position
    stays at chance.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine betas and v-prediction; `set_alpha_to_one=False` keeps the last step's variance above zero for eta = 1."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def thing_masks(scenes: list[Scene]) -> Tensor:
    """float [N, 1, 16, 16]: 1 where a thing stands."""
    masks = torch.zeros(len(scenes), 1, LATENT_SIDE, LATENT_SIDE)
    for mask, scene in zip(masks, scenes, strict=True):
        for thing in scene.things:
            scale, x = SCALE[thing.size], COLUMN_X[thing.column]
            top, bottom = (
                (SKY_Y - 11 * scale, SKY_Y + 11 * scale) if thing.in_sky else (GROUND_Y - 21 * scale, GROUND_Y)
            )
            rows = slice(max(0, int(top // FACTOR)), int(bottom // FACTOR) + 1)
            columns = slice(max(0, int((x - 11 * scale) // FACTOR)), int((x + 11 * scale) // FACTOR) + 1)
            mask[0, rows, columns] = 1
    return masks


class Training:
    """The UNet and the text encoder that learn, their moving averages and the optimisers: what a checkpoint holds."""

    def __init__(self, recipe: Recipe) -> None:
        p = recipe.params
        self.tokenizer = CLIPTokenizer.from_pretrained(recipe.work / "tokenizer")
        torch.manual_seed(p["seed"])
        encoder = CLIPTextModel.from_pretrained(recipe.work / "text_encoder")
        self.model = nn.ModuleDict(
            {"unet": build_unet(p["widths"], encoder.config.hidden_size), "text": encoder}
        ).train()
        self.parameters = list(self.model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimisers = self._optimisers(p["learning_rate"], p["text_rate"])
        self.generator = Generator().manual_seed(p["seed"])
        self.step = 0

    def _optimisers(self, rate: float, text_rate: float) -> list[torch.optim.Optimizer]:
        """Muon for the convolutions and matrices, AdamW for embeddings, biases, norms, and the first and last layer."""
        inner, outer = [], []
        for part, scale in (("unet", 1.0), ("text", text_rate)):
            matrices, others = [], []
            for name, parameter in self.model[part].named_parameters():
                outermost = "embedding" in name or name.startswith(("conv_in", "conv_out"))
                (others if outermost or parameter.ndim == 1 else matrices).append(parameter)
            inner.append({"params": matrices, "scale": scale})
            outer.append({"params": others, "scale": scale})
        adamw = torch.optim.AdamW(outer, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        return [Muon(inner, rate), adamw]

    def learn(self, loss: Tensor, rate: float) -> None:
        """One step of the optimiser and of the moving averages."""
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            set_rate(optimiser, rate)
            optimiser.step()
        self.step += 1
        keep = min(0.998, (10 + self.step) / (30 + self.step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - keep)

    def save(self, path: Path) -> None:
        modules = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        save_checkpoint(path, modules | {"generator": self.generator.get_state(), "step": self.step})

    def resume(self, path: Path) -> None:
        if state := load_checkpoint(path):
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.generator.set_state(state["generator"])
            self.average, self.step = state["average"], state["step"]

    def export(self, recipe: Recipe, folder: Path) -> None:
        """Write the averaged weights as a pipeline, complete or not at all."""
        names = [name for name, _ in self.model.named_parameters()]
        averaged = dict(zip(names, self.average, strict=True))
        text = CLIPTextModel(self.model["text"].config)
        text.load_state_dict(
            {name.removeprefix("text."): tensor for name, tensor in averaged.items() if name.startswith("text.")}
        )
        unet = UNet2DConditionModel.from_config(self.model["unet"].config)
        unet.load_state_dict(
            {name.removeprefix("unet."): tensor for name, tensor in averaged.items() if name.startswith("unet.")}
        )
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(recipe.work / "decoder").half(),
            text_encoder=text.half(),
            tokenizer=self.tokenizer,
            unet=unet.half(),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        fresh = folder.with_name(folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        pipeline.save_pretrained(fresh)
        for path in fresh.glob("*/config.json"):  # diffusers notes where a part came from: a folder of this machine
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def velocity_loss(
    unet: nn.Module,
    clean: Tensor,
    text: Tensor,
    things: Tensor,
    below: int,
    p: dict,
    alphas: Tensor,
    generator: Generator,
) -> Tensor:
    """Weighted MSE of v = sqrt(a) noise - sqrt(1 - a) clean at stratified timesteps, more of them at high noise.

    Where a thing stands (`things`) the error weighs more, but only at timesteps `below` some noise. A weight that
    depends on what is to be drawn moves the best guess: where x_t does not show yet which of three places is taken, a
    weight of 2.5 turns a chance of 1/3 into 5/9, and the model draws copies.
    """
    count = len(clean)
    strata = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    timesteps = (strata ** p["noise_exponent"] * len(alphas)).long().clamp(0, len(alphas) - 1)
    signal, spread = (factor.view(-1, 1, 1, 1) for factor in (alphas[timesteps].sqrt(), (1 - alphas[timesteps]).sqrt()))
    noise = torch.randn(clean.shape, generator=generator)
    drawn = unet(signal * clean + spread * noise, timesteps, text).sample
    weight = 1 + p["thing_weight"] * things * (timesteps < below).view(-1, 1, 1, 1)
    return (weight * (drawn - (signal * noise - spread * clean)) ** 2).mean() / weight.mean()


def main() -> None:
    recipe = read_recipe(__doc__, "unet")
    p = recipe.params
    training = Training(recipe)
    training.resume(recipe.checkpoint)
    generator = training.generator
    latents = {name: tensor.float() for name, tensor in load_file(recipe.work / "latents.safetensors").items()}
    captions = load_file(recipe.work / "captions.safetensors")["ids"]
    count = len(latents["mean"])
    things = thing_masks(load_renders(recipe.work / "renders")[1][:count])
    empty = tokenize(training.tokenizer, [""])[0]
    alphas = build_scheduler().alphas_cumprod

    draft = recipe.checkpoint.with_suffix(".draft")  # beside the checkpoint: DVC empties `work` before a stage goes on
    running = 1.0
    for step in training_steps(recipe, training.step):
        index = torch.randint(0, count, (p["batch"],), generator=generator)
        sampled = torch.randn(index.shape + latents["mean"].shape[1:], generator=generator)
        clean = latents["mean"][index] + latents["deviation"][index] * sampled
        ids = captions[index, torch.randint(0, captions.shape[1], index.shape, generator=generator)].long()
        ids[torch.rand(index.shape, generator=generator) < p["caption_dropout"]] = empty
        text = training.model["text"](input_ids=ids).last_hidden_state
        below = p["thing_timesteps"] if step >= p["thing_everywhere"] else len(alphas)
        loss = velocity_loss(training.model["unet"], clean, text, things[index], below, p, alphas, generator)
        training.learn(loss, trapezoid(step, p["steps"], p["learning_rate"]))
        running += 0.01 * (loss.item() - running)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}, {(step + 1) * p['batch']} pictures: loss {running:.4f}", flush=True)
        if (step + 1) % p["checkpoint_every"] == 0:
            training.save(recipe.checkpoint)
        if training.step == p["draft_step"]:
            training.export(recipe, draft)
    training.export(recipe, recipe.models / "sd")
    shutil.copytree(draft, recipe.work / "draft", dirs_exist_ok=True)
    forget_checkpoint(recipe.checkpoint)
    shutil.rmtree(draft)


if __name__ == "__main__":
    main()
