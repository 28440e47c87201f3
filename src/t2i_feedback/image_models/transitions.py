"""One denoising step of DDIM as a Gaussian policy: its mean, its noise, and the log-probability of what it drew.

Song, Meng & Ermon, *Denoising Diffusion Implicit Models* (2021), eq. 12 and 16. With a_t the cumulative product of
alphas at timestep t, predicted clean sample x0 and predicted noise e:

    sigma_t = eta * sqrt((1 - a_prev) / (1 - a_t)) * sqrt(1 - a_t / a_prev)
    mean    = sqrt(a_prev) * x0 + sqrt(1 - a_prev - sigma_t^2) * e
    x_prev ~ N(mean, sigma_t^2 I)
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """The timesteps of one sampling run and what each needs; all tensors have shape [steps], first step first."""

    timesteps: torch.Tensor  # int64, decreasing
    alpha: torch.Tensor  # a_t, float32
    alpha_prev: torch.Tensor  # a_prev, float32
    sigma: torch.Tensor  # float32; all above 0
    prediction_type: str  # epsilon | v_prediction | sample
    clip_range: float | None  # clean samples are clamped to +- this

    @classmethod
    def of(cls, scheduler, steps: int, eta: float) -> "Schedule":
        """Read a diffusers DDIMScheduler. Raises ValueError if a step would have no noise, hence no log-probability."""
        config = scheduler.config
        if config.thresholding:
            raise ValueError("dynamic thresholding has no transition density that is known here")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.cpu().long()
        previous = timesteps - config.num_train_timesteps // steps
        alphas = scheduler.alphas_cumprod.double()
        alpha = alphas[timesteps]
        alpha_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())
        sigma = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)).clamp(min=0).sqrt()
        if not (sigma > 0).all():
            worst = int(timesteps[sigma.argmin()])
            raise ValueError(
                f"the noise of the step at timestep {worst} is 0 (eta {eta}, {steps} steps): its log-probability does "
                "not exist. Raise eta, or use a scheduler with steps_offset=1 and set_alpha_to_one=False"
            )
        clip = config.clip_sample_range if config.clip_sample else None
        return cls(timesteps, alpha.float(), alpha_prev.float(), sigma.float(), config.prediction_type, clip)

    def __len__(self) -> int:
        return len(self.timesteps)


def transition_mean(schedule: Schedule, step: torch.Tensor, output: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """Mean of x_prev given x_t [B, C, H, W] and the network's output, for the steps with indices `step` [B]."""
    shape = (-1, *[1] * (x_t.ndim - 1))
    output, x_t = output.float(), x_t.float()
    alpha, alpha_prev, sigma = (
        values.to(x_t.device)[step].view(shape) for values in (schedule.alpha, schedule.alpha_prev, schedule.sigma)
    )
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    if schedule.prediction_type == "epsilon":
        clean, epsilon = (x_t - noise * output) / signal, output
    elif schedule.prediction_type == "v_prediction":
        clean, epsilon = signal * x_t - noise * output, signal * output + noise * x_t
    elif schedule.prediction_type == "sample":
        clean, epsilon = output, (x_t - signal * output) / noise
    else:
        raise ValueError(f"prediction type {schedule.prediction_type!r} is not one of epsilon, v_prediction, sample")
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    return alpha_prev.sqrt() * clean + (1 - alpha_prev - sigma**2).clamp(min=0).sqrt() * epsilon


def log_prob(schedule: Schedule, step: torch.Tensor, mean: torch.Tensor, x_prev: torch.Tensor) -> torch.Tensor:
    """Log-density [B] of x_prev under N(mean, sigma^2 I), as a mean over latent dimensions (not a sum).

    A mean keeps its scale when the resolution changes, which the usual clip range of 1e-4 presumes.
    """
    sigma = schedule.sigma.to(mean.device)[step].view(-1, *[1] * (mean.ndim - 1))
    density = -((x_prev.float() - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def kl_divergence(schedule: Schedule, step: torch.Tensor, mean: torch.Tensor, base_mean: torch.Tensor) -> torch.Tensor:
    """KL [B] between two transitions of equal variance, as a mean over latent dimensions."""
    sigma = schedule.sigma.to(mean.device)[step].view(-1, *[1] * (mean.ndim - 1))
    return ((mean - base_mean) ** 2 / (2 * sigma**2)).flatten(1).mean(1)
