"""One denoising step as a Gaussian policy: its mean, its noise, and the log-probability of what it drew.

Whatever the process, noisy latents are x = signal x0 + noise e, and a step ends at a mixture of what the network makes
of the clean sample x0 and of the noise e:

    mean = clean_weight x0 + noise_weight e,    x_prev ~ N(mean, sigma^2 I)

**DDIM** (Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, 2021, eq. 12 and 16), with a_t the cumulative
product of alphas at timestep t, and eta the level of noise:

    sigma = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev)
    clean_weight = sqrt(a_prev),  noise_weight = sqrt(1 - a_prev - sigma^2)

**Flow matching** has signal 1 - s, noise s and v = e - x0 (Liu et al., *Flow Straight and Fast*, 2022). A step from s
to s' < s has clean_weight 1 - s'. With h = s - s' and a the level of noise:

    flow_sde   sigma = g sqrt(h), noise_weight = s' - g^2 h / 2s, g = a sqrt(s / (1 - s))  (Flow-GRPO: Liu et al., 2025)
    dance_sde  the same with g = a                                                         (DanceGRPO: Xue et al., 2025)
    cps        sigma = s' sin(a pi / 2), noise_weight = sqrt(s'^2 - sigma^2)    (coefficients kept: Wang & Yu, 2025)

where the first step of flow_sde takes the second level in 1 - s: its own is 1, or rounded from it. Without noise all
are the Euler step.
"""

import math
from dataclasses import dataclass

import torch

from t2i_feedback.image_models.section import NoiseKind, check_level

Steps = range  # indices of the steps that have noise


@dataclass(frozen=True)
class Schedule:
    """The steps of one sampling run and what each needs; all tensors have shape [steps], first step first."""

    timesteps: torch.Tensor  # as the network is told them, decreasing
    signal: torch.Tensor  # float32, as all that follow: of the noisy latents, clean sample ...
    noise: torch.Tensor  # ... and noise
    clean_weight: torch.Tensor  # of the step's mean
    noise_weight: torch.Tensor
    sigma: torch.Tensor  # 0 where a step has no noise
    length: torch.Tensor  # how far a step goes in the flow's time, noise / (signal + noise)
    prediction_type: str  # epsilon | v_prediction | sample | flow
    clip_range: float | None = None  # clean samples are clamped to +- this

    @classmethod
    def ddim(cls, scheduler, steps: int, eta: float, noisy: Steps | None = None) -> "Schedule":
        """Read a diffusers DDIMScheduler; `noisy` None: all steps.

        Raises ValueError if a step that should have noise has none, hence no log-probability, or eta is above 1.
        """
        check_level("ddim", eta)
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
        if eta and not (sigma > 0).all():
            worst = int(timesteps[sigma.argmin()])
            raise ValueError(
                f"the noise of the step at timestep {worst} is 0 (eta {eta}, {steps} steps): its log-probability does "
                "not exist. Raise eta, or use a scheduler with steps_offset=1 and set_alpha_to_one=False"
            )
        alpha, alpha_prev, sigma = alpha.float(), alpha_prev.float(), _only(sigma, noisy).float()
        return cls(
            timesteps,
            alpha.sqrt(),
            (1 - alpha).sqrt(),
            alpha_prev.sqrt(),
            (1 - alpha_prev - sigma**2).clamp(min=0).sqrt(),
            sigma,
            _flow_time(alpha) - _flow_time(alpha_prev),
            config.prediction_type,
            config.clip_sample_range if config.clip_sample else None,
        )

    @classmethod
    def flow(
        cls, timesteps: torch.Tensor, levels: torch.Tensor, kind: NoiseKind, level: float, noisy: Steps | None = None
    ) -> "Schedule":
        """Of the noise levels s [steps + 1], the first at most 1 and the last 0, and the network's `timesteps` [steps].

        `level` is a of the kind; `noisy` None: all steps. Raises ValueError if the kind is no flow's, or has no such
        level.
        """
        check_level(kind, level)
        levels = levels.cpu().double()
        s, after = levels[:-1], levels[1:]
        h = s - after
        if kind == "cps":
            sigma = after * math.sin(level * math.pi / 2)
            noise_weight = (after**2 - _only(sigma, noisy) ** 2).sqrt()
        elif kind in ("flow_sde", "dance_sde"):
            clean = 1 - s.minimum(levels[1])
            rate = level * (s / clean).sqrt() if kind == "flow_sde" else torch.full_like(s, level)
            sigma = rate * h.sqrt()
            noise_weight = after - _only(sigma, noisy) ** 2 / (2 * s)
        else:
            raise ValueError(f"noise of kind {kind} is of no flow model; there are flow_sde, cps, dance_sde")
        return cls(
            timesteps.cpu(),
            (1 - s).float(),
            s.float(),
            (1 - after).float(),
            noise_weight.float(),
            _only(sigma, noisy).float(),
            h.float(),
            "flow",
        )

    def __len__(self) -> int:
        return len(self.timesteps)


def _flow_time(alpha: torch.Tensor) -> torch.Tensor:
    """At which a flow has the ratio of noise to signal that a_t `alpha` stands for."""
    return (1 - alpha).sqrt() / (alpha.sqrt() + (1 - alpha).sqrt())


def _only(sigma: torch.Tensor, noisy: Steps | None) -> torch.Tensor:
    """The noise [steps] of the steps that are to have any."""
    if noisy is None:
        return sigma
    found = torch.zeros_like(sigma)
    found[noisy.start : noisy.stop] = sigma[noisy.start : noisy.stop]
    return found


def clean_and_noise(
    schedule: Schedule, step: torch.Tensor, output: torch.Tensor, x_t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 and e, both [B, ...], that the network's output makes of x_t at the steps with indices `step` [B]."""
    output, x_t = output.float(), x_t.float()
    signal, noise = _of_steps(schedule.signal, step, x_t), _of_steps(schedule.noise, step, x_t)
    if schedule.prediction_type == "epsilon":
        clean, epsilon = (x_t - noise * output) / signal, output
    elif schedule.prediction_type == "v_prediction":
        clean, epsilon = signal * x_t - noise * output, signal * output + noise * x_t
    elif schedule.prediction_type == "sample":
        clean, epsilon = output, (x_t - signal * output) / noise
    elif schedule.prediction_type == "flow":
        clean, epsilon = x_t - noise * output, x_t + signal * output
    else:
        raise ValueError(f"prediction type {schedule.prediction_type!r} is not one of epsilon, v_prediction, sample")
    if schedule.clip_range is not None:
        clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    return clean, epsilon


def transition_mean(schedule: Schedule, step: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mean [B, ...] of x_prev given x0 and e at the steps with indices `step` [B]."""
    return _of_steps(schedule.clean_weight, step, clean) * clean + _of_steps(schedule.noise_weight, step, noise) * noise


def _of_steps(values: torch.Tensor, step: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The values [steps] at `step` [B], so that they multiply `like` [B, ...]."""
    return values.to(like.device)[step].view(-1, *[1] * (like.ndim - 1))


def log_prob(schedule: Schedule, step: torch.Tensor, mean: torch.Tensor, x_prev: torch.Tensor) -> torch.Tensor:
    """Log-density [B] of x_prev under N(mean, sigma^2 I), as a mean over latent dimensions (not a sum).

    A mean keeps its scale when the resolution changes, which the usual clip range of 1e-4 presumes.
    """
    sigma = _of_steps(schedule.sigma, step, mean)
    density = -((x_prev.float() - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def kl_divergence(schedule: Schedule, step: torch.Tensor, mean: torch.Tensor, base_mean: torch.Tensor) -> torch.Tensor:
    """KL [B] between two transitions of equal variance, as a mean over latent dimensions."""
    sigma = _of_steps(schedule.sigma, step, mean)
    return ((mean - base_mean) ** 2 / (2 * sigma**2)).flatten(1).mean(1)
