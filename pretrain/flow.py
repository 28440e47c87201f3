"""Train a flow model of Stable Diffusion 3's class on the latents of the shipped image model's VAE.

    PYTHONPATH=src python pretrain/flow.py

Needs `pretrain/work/renders` and `models/postcards/sd`, whose VAE it keeps and whose text encoder it starts from.
Writes a `StableDiffusion3Pipeline` to `models/postcards/sd3` (fp16 safetensors) without the optional third text
encoder, whose place takes one row of zeros (`max_sequence_length=1`): the pipeline's 256 would make a step several
times as dear. An interrupted training goes on from its last checkpoint.
"""

import random
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from pictures import load_renders
from recipe import Recipe, forget_checkpoint, read_recipe, training_steps, trapezoid
from text_encoder import tokenize, write_caption
from torch import Tensor, nn
from tqdm import tqdm
from training import Training, save_pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
from unet import LATENT_SIDE, thing_masks
from vae import encode

HEAD = 32  # width of an attention head


def build_transformer(heads: int, layers: int, text_width: int) -> SD3Transformer2DModel:
    """Text and image attend to each other in all `layers`; a token of the image is 2 x 2 latents."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        caption_projection_dim=heads * HEAD,
        pooled_projection_dim=text_width,
        pos_embed_max_size=LATENT_SIDE // 2,
        qk_norm="rms_norm",
    )


def first_encoder(recipe: Recipe) -> CLIPTextModelWithProjection:
    """The text encoder of `sd`, with a projection that changes nothing yet."""
    encoder = CLIPTextModelWithProjection.from_pretrained(recipe.models / "sd/text_encoder", dtype=torch.float32)
    nn.init.eye_(encoder.text_projection.weight)
    return encoder


def second_encoder(first: CLIPTextConfig, width: int) -> CLIPTextModelWithProjection:
    """A fresh, smaller one: the pipeline's class has two, and reads the last layer but one of each."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    config = CLIPTextConfig(**first.to_dict() | sizes | {"num_hidden_layers": 2, "num_attention_heads": 2})
    return CLIPTextModelWithProjection(config)


def build_training(recipe: Recipe) -> Training:
    p = recipe.params
    torch.manual_seed(p["seed"])
    first = first_encoder(recipe)
    second = second_encoder(first.config, p["second_width"])
    network = build_transformer(p["heads"], p["layers"], first.config.hidden_size + p["second_width"])
    parts = {"transformer": network, "first": first, "second": second}
    shares = {"transformer": 1.0, "first": p["text_rate"], "second": 1.0}

    def outermost(name: str) -> bool:
        return not ("block" in name or "layers." in name) or "norm" in name

    return Training(parts, shares, p["learning_rate"], outermost, p["seed"])


def conditioning(parts: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the pipeline makes of token ids [B, T]: text [B, T + 1, width], its last row 0, and pooled [B, width]."""
    read = [parts[name](input_ids=ids, output_hidden_states=True) for name in ("first", "second")]
    text = torch.cat([one.hidden_states[-2] for one in read], dim=-1)
    pooled = torch.cat([one.text_embeds for one in read], dim=-1)
    return torch.cat([text, text.new_zeros(len(text), 1, text.shape[-1])], dim=1), pooled


def velocity_loss(training: Training, clean: Tensor, ids: Tensor, things: Tensor, below: float, p: dict) -> Tensor:
    """Weighted MSE of v = noise - clean at stratified noise levels, more of them high.

    The noisy latents are (1 - s) clean + s noise (Liu et al., *Flow Straight and Fast*, 2022). Where a thing stands the
    error weighs more, but only at levels s `below` which the noisy picture shows what stands there (the reason:
    `unet.velocity_loss`).
    """
    count, generator = len(clean), training.generator
    strata = (torch.rand(1, generator=generator) + torch.arange(count) / count) % 1
    levels = (strata ** p["noise_exponent"]).clamp(1e-3, 1)
    s = levels.view(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    text, pooled = conditioning(training.model, ids)
    drawn = training.model["transformer"](
        hidden_states=(1 - s) * clean + s * noise,
        timestep=1000 * levels,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    weight = 1 + p["thing_weight"] * things * (s < below)
    return (weight * (drawn - (noise - clean)) ** 2).mean() / weight.mean()


def export(training: Training, tokenizer: CLIPTokenizer, vae: AutoencoderKL, recipe: Recipe) -> None:
    """Write the averaged weights as a pipeline."""
    encoders = {}
    for name in ("first", "second"):
        encoders[name] = CLIPTextModelWithProjection(training.model[name].config)
        encoders[name].load_state_dict(training.averaged(name))
    transformer = SD3Transformer2DModel.from_config(training.model["transformer"].config)
    transformer.load_state_dict(training.averaged("transformer"), strict=False)  # its positions are no parameter
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.half(),
        text_encoder=encoders["first"].half(),
        tokenizer=tokenizer,
        text_encoder_2=encoders["second"].half(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    save_pipeline(pipeline, recipe.models / "sd3")


@torch.no_grad()
def encoded(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of uint8 pictures [N, 3, 64, 64], fp16 [N, 4, 16, 16] each."""
    batches = tqdm(images.split(50), desc="encode", unit="batch", mininterval=10)
    means, deviations = zip(*(map(Tensor.half, encode(vae, batch)) for batch in batches), strict=True)
    return torch.cat(means), torch.cat(deviations)


def main() -> None:
    recipe = read_recipe(__doc__, "flow")
    p = recipe.params
    tokenizer = CLIPTokenizer.from_pretrained(recipe.models / "sd/tokenizer")
    vae = AutoencoderKL.from_pretrained(recipe.models / "sd/vae", dtype=torch.float32).eval()
    images, scenes = load_renders(recipe.work / "renders")
    mean, deviation = encoded(vae, images)
    things = thing_masks(scenes)
    rng = random.Random(p["seed"])
    captions = torch.stack(
        [
            tokenize(
                tokenizer, [write_caption(scene, rng, p["levels"], p["remark_share"])[0] for _ in range(p["captions"])]
            )
            for scene in scenes
        ]
    ).short()
    empty = tokenize(tokenizer, [""])[0]

    training = build_training(recipe)
    training.resume(recipe.checkpoint)
    print(f"flow: {sum(p.numel() for p in training.model['transformer'].parameters()) / 1e6:.2f} M in the transformer")
    generator, running = training.generator, 1.0
    for step in training_steps(recipe, training.step):
        index = torch.randint(0, len(mean), (p["batch"],), generator=generator)
        sampled = torch.randn(index.shape + mean.shape[1:], generator=generator)
        clean = mean[index].float() + deviation[index].float() * sampled
        ids = captions[index, torch.randint(0, captions.shape[1], index.shape, generator=generator)].long()
        ids[torch.rand(index.shape, generator=generator) < p["caption_dropout"]] = empty
        below = p["thing_levels"] if step >= p["thing_everywhere"] else 2.0
        loss = velocity_loss(training, clean, ids, things[index], below, p)
        training.learn(loss, trapezoid(step, p["steps"], p["learning_rate"], p["decay"]))
        running += 0.01 * (loss.item() - running)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}, {(step + 1) * p['batch']} pictures: loss {running:.4f}", flush=True)
        if (step + 1) % p["checkpoint_every"] == 0:
            training.save(recipe.checkpoint)
    export(training, tokenizer, vae, recipe)
    forget_checkpoint(recipe.checkpoint)


if __name__ == "__main__":
    main()
