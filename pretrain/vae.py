"""Train the image model's autoencoder: 64 x 64 x 3 pictures <-> 16 x 16 x 4 latents with mean 0 and variance 1.

    PYTHONPATH=src python pretrain/vae.py vae        # -> pretrain/work/vae and pretrain/work/latents.safetensors
    PYTHONPATH=src python pretrain/vae.py decoder    # -> pretrain/work/decoder: the same with a better decoder

Both folders hold a diffusers AutoencoderKL. The latents are `mean` and `deviation`, fp16 [N, 4, 16, 16] each, of the
first rendered training pictures; the encoder is final after `vae`, so that the UNet can begin while the decoder learns.

Most steps see crops of half the side that show a thing, since things are what is hard to reconstruct; the last steps
see whole pictures. Part of the pictures is dark, subdued and blurred, as fine-tuning will ask for. Beside the pixels,
what the labeller makes of a picture must survive: pixels alone let small things melt.
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from oracle import accuracy
from pictures import load_renders, restyle
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
from torch import Generator, Tensor, nn

from t2i_feedback.datasets.postcards import world
from t2i_feedback.datasets.postcards.world import Scene
from t2i_feedback.evaluation.alignment import Oracle


def build_vae(widths: list[int], seed: int) -> AutoencoderKL:
    """Factor 4, 4 latent channels, no attention. `scaling_factor` is 1 because `fold` standardises the latents."""
    torch.manual_seed(seed)
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
        sample_size=world.SIDE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def crop_around(pixels: Tensor, scenes: list[Scene], side: int, generator: Generator) -> Tensor:
    """Crops [B, 3, side, side], each around one random thing of its scene, moved at random by up to a quarter."""
    crops = []
    for picture, scene in zip(pixels, scenes, strict=True):
        pick, *offsets = torch.rand(3, generator=generator).tolist()
        thing = scene.things[int(pick * len(scene.things))]
        centre = (world.SKY_Y if thing.in_sky else world.GROUND_Y - 9, world.COLUMN_X[thing.column])
        corner = [
            min(max(int(c - side / 2 + (offset - 0.5) * side / 2), 0), world.SIDE - side)
            for c, offset in zip(centre, offsets, strict=True)
        ]
        crops.append(picture[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side])
    return torch.stack(crops)


def reconstruction_loss(pixels: Tensor, drawn: Tensor) -> Tensor:
    """L1 weighted by edges + 3 MSE; pixels in -1..1."""
    smooth = F.avg_pool2d(F.pad(pixels, (2, 2, 2, 2), mode="replicate"), 5, 1)
    edges = (pixels - smooth).abs().amax(1, keepdim=True)
    difference = (pixels - drawn).abs()
    return (difference * (0.5 + 2 * edges)).mean() + 3 * (difference**2).mean()


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the latents from a standard normal, per element."""
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()


class Perception(nn.Module):
    """How differently a trained reader of pictures sees two of them: distance of its features, unit length each.

    After Zhang et al. 2018 (LPIPS), without learnt weights. The reader is the labeller; the oracle only measures.
    """

    LAYERS = (5, 8, 11, 14)  # after the ReLUs at 16 x 16 (twice) and 8 x 8 (twice), of a picture of 64 x 64

    def __init__(self, reader: Oracle) -> None:
        super().__init__()
        self.features = reader.features.eval().requires_grad_(False)

    def _see(self, pixels: Tensor) -> list[Tensor]:
        seen = []
        for number, layer in enumerate(self.features):
            pixels = layer(pixels)
            if number in self.LAYERS:
                seen.append(F.normalize(pixels, dim=1))
        return seen

    def forward(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Mean squared distance over places and layers; pixels [B, 3, H, W] in -1..1."""
        with torch.no_grad():
            wanted = self._see(pixels)
        pairs = zip(wanted, self._see(drawn), strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()


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


def train(recipe: Recipe, vae: AutoencoderKL, learning: nn.Module, pictures: Tensor, scenes: list[Scene]) -> None:
    """Train the part `learning` of the VAE from the last checkpoint, or from the beginning.

    Leaves the moving average of its weights in place.
    """
    p = recipe.params
    torch.manual_seed(p["seed"])
    generator = Generator().manual_seed(p["seed"])
    vae.requires_grad_(False)
    learning.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        learning.parameters(), p["learning_rate"], betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    average = {name: tensor.clone() for name, tensor in learning.state_dict().items()}
    perception = Perception(Oracle.from_pretrained(recipe.work / "labeller"))
    first = 0
    if state := load_checkpoint(recipe.checkpoint):
        first, average = state["step"], state["average"]
        learning.load_state_dict(state["learning"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])

    for step in training_steps(recipe, first):
        set_rate(optimiser, cosine(step, p["steps"], p["learning_rate"]))
        whole = step >= p["crop_share"] * p["steps"]
        index = torch.randint(0, len(pictures), (p["batch"] // 4 if whole else p["batch"],), generator=generator)
        pixels = pictures[index].float() / 255
        if not whole:
            pixels = crop_around(pixels, [scenes[i] for i in index.tolist()], world.SIDE // 2, generator)
        pixels = restyle(pixels, generator, p["styled_share"]) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            drawn = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        loss = reconstruction_loss(pixels, drawn) + p["perception_weight"] * perception(pixels, drawn)
        loss = loss + p["kl_weight"] * divergence(posterior.mean.float(), posterior.logvar.float())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimiser.step()
        keep = min(0.995, (step + 1) / (step + 5))
        for name, tensor in learning.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        if (step + 1) % p["checkpoint_every"] == 0:
            modules = {"learning": learning.state_dict(), "average": average, "optimiser": optimiser.state_dict()}
            save_checkpoint(recipe.checkpoint, modules | {"generator": generator.get_state(), "step": step + 1})
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    learning.load_state_dict(average)
    vae.eval()


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
    part = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in ("vae", "decoder") else "vae"
    recipe = read_recipe(__doc__, part)
    pictures, scenes = load_renders(recipe.work / "renders")
    if part == "vae":
        vae = build_vae(recipe.params["widths"], recipe.params["seed"])
        train(recipe, vae, vae, pictures, scenes)
        mean, deviation = fold(vae, *encode(vae, pictures[: recipe.params["encode"]]))
        save_file({"mean": mean.half(), "deviation": deviation.half()}, recipe.work / "latents.safetensors")
    else:
        vae = AutoencoderKL.from_pretrained(recipe.work / "vae")
        train(recipe, vae, vae.decoder, pictures, scenes)
    vae.save_pretrained(recipe.work / part)
    forget_checkpoint(recipe.checkpoint)
    oracle = Oracle.from_pretrained(recipe.models / "oracle")
    print("reconstructions of held-out pictures:", quality(vae, oracle, *load_renders(recipe.work / "renders", "val_")))


if __name__ == "__main__":
    main()
