"""Train the image model's UNet, with the text encoder, on the latents of the rendered pictures.

    PYTHONPATH=src python pretrain/unet.py

Writes a complete StableDiffusionPipeline to `models/postcards/sd` (fp16 safetensors). An interrupted training goes on
from its last checkpoint.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pictures import load_renders
from recipe import Recipe, forget_checkpoint, read_recipe, training_steps, trapezoid
from safetensors.torch import load_file
from text_encoder import tokenize
from torch import Generator, Tensor, nn
from training import Training, save_pipeline
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


def build_training(recipe: Recipe) -> Training:
    """The UNet, fresh, and the text encoder as it is."""
    p = recipe.params
    torch.manual_seed(p["seed"])
    encoder = CLIPTextModel.from_pretrained(recipe.work / "text_encoder")
    parts = {"unet": build_unet(p["widths"], encoder.config.hidden_size), "text": encoder}
    shares = {"unet": 1.0, "text": p["text_rate"]}
    return Training(parts, shares, p["learning_rate"], lambda name: name.startswith(("conv_in", "conv_out")), p["seed"])


def export(training: Training, tokenizer: CLIPTokenizer, recipe: Recipe, folder: Path) -> None:
    """Write the averaged weights as a pipeline."""
    text = CLIPTextModel(training.model["text"].config)
    text.load_state_dict(training.averaged("text"))
    unet = UNet2DConditionModel.from_config(training.model["unet"].config)
    unet.load_state_dict(training.averaged("unet"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(recipe.work / "decoder").half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_pipeline(pipeline, folder)


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
    tokenizer = CLIPTokenizer.from_pretrained(recipe.work / "tokenizer")
    training = build_training(recipe)
    training.resume(recipe.checkpoint)
    generator = training.generator
    latents = {name: tensor.float() for name, tensor in load_file(recipe.work / "latents.safetensors").items()}
    captions = load_file(recipe.work / "captions.safetensors")["ids"]
    count = len(latents["mean"])
    things = thing_masks(load_renders(recipe.work / "renders")[1][:count])
    empty = tokenize(tokenizer, [""])[0]
    alphas = build_scheduler().alphas_cumprod

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
    export(training, tokenizer, recipe, recipe.models / "sd")
    forget_checkpoint(recipe.checkpoint)


if __name__ == "__main__":
    main()
