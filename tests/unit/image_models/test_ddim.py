"""The denoising step as a Gaussian policy, against an independent derivation and against diffusers itself."""

import math

import pytest
import tiny_diffusion
import torch
from diffusers import DDIMScheduler

from t2i_feedback.finetuning.rollout import roll_out
from t2i_feedback.foundation.seeds import noise_seed
from t2i_feedback.image_models import base, transitions


def scheduler(**changes) -> DDIMScheduler:
    return DDIMScheduler(
        **(
            {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}
            | changes
        )
    )


def mean_of(schedule, step, output, x):
    return transitions.transition_mean(schedule, step, *transitions.clean_and_noise(schedule, step, output, x))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_step_is_the_one_that_diffusers_takes(prediction_type, spacing, eta):
    theirs = scheduler(prediction_type=prediction_type, timestep_spacing=spacing)
    schedule = transitions.Schedule.ddim(theirs, 7, eta)
    x, output, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for index, timestep in enumerate(theirs.timesteps):
        step = torch.full((2,), index)
        mean = mean_of(schedule, step, output, x)
        expected = theirs.step(output, timestep, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(mean + schedule.sigma[index] * noise, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.1, 0.7, 1.0])
def test_log_prob_agrees_with_a_float64_normal_density(prediction_type, spacing, eta):
    theirs = scheduler(prediction_type=prediction_type, timestep_spacing=spacing)
    schedule = transitions.Schedule.ddim(theirs, 6, eta)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    cumulative = (1 - betas).cumprod(0)
    x, output, x_prev = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for index, timestep in enumerate(schedule.timesteps.tolist()):
        before = timestep - 1000 // 6
        a, b = cumulative[timestep], cumulative[max(before, 0)]
        variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        xd, od = x.double(), output.double()
        clean = {
            "epsilon": (xd - (1 - a).sqrt() * od) / a.sqrt(),
            "v_prediction": a.sqrt() * xd - (1 - a).sqrt() * od,
            "sample": od,
        }[prediction_type]
        direction = (xd - a.sqrt() * clean) / (1 - a).sqrt()
        mean = b.sqrt() * clean + (1 - b - variance).sqrt() * direction
        expected = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x_prev.double()).mean()
        step = torch.tensor([index])
        found = transitions.log_prob(schedule, step, mean_of(schedule, step, output, x), x_prev)
        assert found.item() == pytest.approx(expected.item(), rel=2e-4)


def test_03_log_prob_is_a_mean_so_doubling_the_resolution_keeps_its_scale():
    schedule = transitions.Schedule.ddim(scheduler(), 10, 1.0)
    generator = torch.Generator().manual_seed(0)
    found = []
    for side in (16, 32):
        mean = torch.randn(64, 4, side, side, generator=generator)
        x_prev = mean + schedule.sigma[3] * torch.randn(mean.shape, generator=generator)
        found.append(transitions.log_prob(schedule, torch.full((64,), 3), mean, x_prev).mean())
    assert found[0].item() == pytest.approx(found[1].item(), abs=0.02)


def test_04_every_sigma_is_positive():
    assert (transitions.Schedule.ddim(scheduler(), 20, 1.0).sigma > 0).all()


def test_04_a_last_sigma_of_0_is_refused():
    with pytest.raises(ValueError, match="set_alpha_to_one=False"):
        transitions.Schedule.ddim(scheduler(set_alpha_to_one=True), 20, 1.0)


def test_04_a_spacing_that_ends_at_timestep_0_has_a_last_sigma_of_0_and_is_refused():
    with pytest.raises(ValueError, match="at timestep 0 is 0"):
        transitions.Schedule.ddim(scheduler(timestep_spacing="linspace"), 20, 1.0)


def test_kl_is_the_closed_form_for_equal_variances():
    schedule = transitions.Schedule.ddim(scheduler(), 10, 1.0)
    mean, base = torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.1)
    sigma = schedule.sigma[2].item()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(0.0, sigma), normal(0.1, sigma)).item()
    assert transitions.kl_divergence(schedule, torch.tensor([2]), mean, base).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_a_rollout_draws_what_the_pipeline_draws_from_the_same_noise(tmp_path):
    pipe = tiny_diffusion.pipeline(tmp_path)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    prompts, seeds = ["a cat", "two dogs"], [11, 12]
    model = tiny_diffusion.image_model(pipe, eta=1.0)
    expected = model.draw(prompts, seeds)
    policy = base.Policy.of(model, model.schedule(5, "ddim", 1.0))
    rollout = roll_out(policy, model.encode(prompts), torch.tensor([0, 1]), seeds)
    for mine, theirs in zip(rollout.images, expected, strict=True):
        pairs = zip(mine.tobytes(), theirs.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1


def test_a_image_does_not_depend_on_its_batch(tmp_path):
    pipe = tiny_diffusion.pipeline(tmp_path)
    model = tiny_diffusion.image_model(pipe, steps=4, eta=0.5)
    together = model.draw(["a", "b", "c"], [1, 2, 3])
    alone = model.draw(["c"], [3])[0]
    assert max(abs(a - b) for a, b in zip(together[2].tobytes(), alone.tobytes(), strict=True)) <= 1


def test_noise_seeds_differ_by_caption_and_round_and_not_by_anything_else():
    assert noise_seed(1, 5, 1) == noise_seed(1, 5, 1)
    assert len({noise_seed(1, c, r) for c in range(20) for r in range(1, 5)}) == 80
    assert 0 <= noise_seed(1, 5, 1) < 2**63


def test_tokens_beyond_the_window_are_counted(tmp_path):
    pipe = tiny_diffusion.pipeline(tmp_path)
    assert base.tokens_lost(pipe.tokenizer, ["a b", "a " * 100]) == [0, 100 + 2 - 77]


def test_log_prob_is_of_the_latent_as_stored(tmp_path):
    model = tiny_diffusion.image_model(tiny_diffusion.pipeline(tmp_path))
    schedule = model.schedule(5, "ddim", 1.0)
    policy = base.Policy.of(model, schedule)
    given = model.encode(["a"])
    rollout = roll_out(policy, given, torch.tensor([0]), [1])
    with torch.no_grad():
        for index in range(5):
            step = torch.tensor([index])
            mean = policy.mean(rollout.latents[:, index], step, given)
            found = transitions.log_prob(schedule, step, mean, rollout.latents[:, index + 1])
            assert math.exp(found - rollout.log_probs[:, index]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_replay_has_a_ratio_of_1_and_the_density_is_that_of_a_float64_normal(dtype, tmp_path):
    model = tiny_diffusion.image_model(tiny_diffusion.pipeline(tmp_path))
    schedule = model.schedule(5, "ddim", 1.0)
    policy = base.Policy.of(model, schedule)
    given = model.encode(["a", "b"])
    with torch.autocast("cpu", dtype), torch.no_grad():
        rollout = roll_out(policy, given, torch.tensor([0, 1]), [1, 2])
        for index in range(5):
            step = torch.tensor([index, index])
            mean = policy.mean(rollout.latents[:, index], step, given)
            found = transitions.log_prob(schedule, step, mean, rollout.latents[:, index + 1])
            assert mean.dtype == found.dtype == torch.float32
            torch.testing.assert_close(found, rollout.log_probs[:, index], atol=1e-5, rtol=0)
            normal = torch.distributions.Normal(mean.double(), schedule.sigma[index].double())
            expected = normal.log_prob(rollout.latents[:, index + 1].double()).flatten(1).mean(1)
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
