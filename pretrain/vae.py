"""Train the image model's autoencoder: 64 x 64 x 3 pictures <-> 16 x 16 x 4 latents with mean 0 and variance 1.

    PYTHONPATH=src python pretrain/vae.py

Writes `pretrain/work/vae/` (a diffusers AutoencoderKL) and `pretrain/work/latents.safetensors`: `mean` and `deviation`,
fp16 [N, 4, 16, 16] each, of the first rendered training pictures.

Most steps see crops of half the side that show a thing, since things are what is hard to reconstruct; the last steps
see whole pictures. Part of the pictures is dark, subdued and blurred, as fine-tuning will ask for.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from oracle import accuracy
from pictures import load_renders, restyle
from recipe import Recipe, cosine, load_checkpoint, read_recipe, save_checkpoint, set_rate, training_steps
from safetensors.torch import save_file
from torch import Generator, Tensor

from t2i_feedback.datasets import postcards
from t2i_feedback.datasets.postcards import Scene
from t2i_feedback.evaluation.alignment import Oracle


def build_vae(widths: list[int]) -> AutoencoderKL:
    """Factor 4, 4 latent channels, no attention. `scaling_factor` is 1 because `fold` standardises the latents."""
    levels = len(widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=tuple(widths),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=postcards.SIDE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def crop_around(pixels: Tensor, scenes: list[Scene], side: int, generator: Generator) -> Tensor:
    """Crops [B, 3, side, side], each around one random thing of its scene, moved at random by up to a quarter."""
    crops = []
    for picture, scene in zip(pixels, scenes, strict=True):
        pick, *offsets = torch.rand(3, generator=generator).tolist()
        thing = scene.things[int(pick * len(scene.things))]
        centre = (postcards.SKY_Y if thing.in_sky else postcards.GROUND_Y - 9, postcards.COLUMN_X[thing.column])
        corner = [
            min(max(int(c - side / 2 + (offset - 0.5) * side / 2), 0), postcards.SIDE - side)
            for c, offset in zip(centre, offsets, strict=True)
        ]
        crops.append(picture[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side])
    return torch.stack(crops)


def reconstruction_loss(pixels: Tensor, drawn: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float) -> Tensor:
    """L1 weighted by edges + 3 MSE + KL; pixels in -1..1."""
    smooth = F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), 5, 1)
    edges = (pixels - smooth).abs().amax(1, keepdim=True)
    difference = (pixels - drawn).abs()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return (difference * (0.5 + 2 * edges)).mean() + 3 * (difference**2).mean() + kl_weight * kl


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 64, 64] -> mean and deviation of the latents."""
    means, deviations = [], []
    for chunk in pictures.split(100):
        posterior = vae.encode(chunk.float() / 127.5 - 1).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def fold(vae: AutoencoderKL, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise each latent channel inside `quant_conv` and `post_quant_conv`; returns the standardised latents.

    StableDiffusionPipeline knows a scaling factor and no shift, so the shift has to be part of the weights.
    """
    channels = mean.shape[1]
    centre = mean.mean((0, 2, 3))
    spread = (mean.var((0, 2, 3)) + (deviation**2).mean((0, 2, 3))).sqrt()
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - centre) / spread
    into.bias[channels:] -= 2 * spread.log()
    out.bias += (out.weight[:, :, 0, 0] * centre).sum(1)
    out.weight *= spread[None, :, None, None]
    shape = (1, channels, 1, 1)
    return (mean - centre.view(shape)) / spread.view(shape), deviation / spread.view(shape)


def train(recipe: Recipe, pictures: Tensor, scenes: list[Scene]) -> AutoencoderKL:
    """Train from the last checkpoint, or from the beginning; returns the moving average of the weights."""
    p = recipe.params
    torch.manual_seed(p["seed"])
    generator = Generator().manual_seed(p["seed"])
    vae = build_vae(p["widths"])
    optimiser = torch.optim.AdamW(
        vae.parameters(), p["learning_rate"], betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    average = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    first = 0
    if state := load_checkpoint(recipe.checkpoint):
        first, average = state["step"], state["average"]
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])

    for step in training_steps(recipe, first):
        set_rate(optimiser, cosine(step, p["steps"], p["learning_rate"]))
        whole = step >= p["crop_share"] * p["steps"]
        index = torch.randint(0, len(pictures), (p["batch"] // 4 if whole else p["batch"],), generator=generator)
        pixels = pictures[index].float() / 255
        if not whole:
            pixels = crop_around(pixels, [scenes[i] for i in index.tolist()], postcards.SIDE // 2, generator)
        pixels = restyle(pixels, generator, p["styled_share"]) * 2 - 1
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        drawn = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(pixels, drawn, posterior.mean, posterior.logvar, p["kl_weight"])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 5))
        for name, tensor in vae.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        if (step + 1) % p["checkpoint_every"] == 0:
            modules = {"vae": vae.state_dict(), "average": average, "optimiser": optimiser.state_dict()}
            save_checkpoint(recipe.checkpoint, modules | {"generator": generator.get_state(), "step": step + 1})
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    vae.load_state_dict(average)
    return vae.eval()


@torch.no_grad()
def quality(vae: AutoencoderKL, oracle: Oracle, pictures: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """PSNR in dB, and what the oracle still reads right, of reconstructed pictures."""
    mean, deviation = encode(vae, pictures)
    latents = mean + deviation * torch.randn(mean.shape, generator=Generator().manual_seed(0))
    drawn = torch.cat([vae.decode(chunk).sample for chunk in latents.split(100)]).clamp(-1, 1) / 2 + 0.5
    error = ((drawn - pictures.float() / 255) ** 2).mean((1, 2, 3))
    psnr = round(float((-10 * error.log10()).mean()), 2)
    return {"psnr": psnr} | accuracy(oracle, (drawn * 255).round().byte(), scenes)


def main() -> None:
    recipe = read_recipe(__doc__, "vae")
    pictures, scenes = load_renders(recipe.work / "renders")
    vae = train(recipe, pictures, scenes)
    mean, deviation = fold(vae, *encode(vae, pictures[: recipe.params["encode"]]))
    vae.save_pretrained(recipe.work / "vae")
    save_file({"mean": mean.half(), "deviation": deviation.half()}, recipe.work / "latents.safetensors")
    oracle = Oracle.from_pretrained(recipe.models / "oracle")
    print("reconstructions of held-out pictures:", quality(vae, oracle, *load_renders(recipe.work / "renders", "val_")))


if __name__ == "__main__":
    main()
