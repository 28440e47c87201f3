"""What every family must do, on a tiny random checkpoint of each: a further one is a line in `tiny_families.FAMILIES`.

What only real weights can show (quality, memory, half precision) is not shown here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import tiny_families
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from t2i_feedback.finetuning.acquisition import Scorer
from t2i_feedback.finetuning.monitoring import kl_to_base
from t2i_feedback.finetuning.rollout import Trajectories, roll_out
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generators
from t2i_feedback.image_models import base, loading
from t2i_feedback.image_models.base import ImageModel, Policy
from t2i_feedback.image_models.families import families
from t2i_feedback.image_models.transitions import Schedule

PROMPTS, SEEDS = ["a cat", "two dogs", "b c d"], [1, 2, 3]


@pytest.fixture(scope="module", params=sorted(tiny_families.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def settings(folder: Path, **changes):
    return tiny_diffusion.model(
        **{"name": str(folder), "size": tiny_families.SIZE, "scheduler": "auto", "max_sequence_length": 3} | changes
    )


def load(folder: Path, *, training: bool = False, adapter: Path | None = None, **changes) -> ImageModel:
    return loading.load_image_model(settings(folder, **changes), adapter, training=training)


def rolled(made: ImageModel, level: float, prompts=PROMPTS, seeds=SEEDS) -> Trajectories:
    policy = Policy.of(made, made.schedule(made.settings.steps, made.noises[0], level))
    return roll_out(policy, made.encode(prompts), torch.arange(len(prompts)), seeds)


def apart(some, others) -> int:
    """The largest difference in grey levels."""
    pairs = zip(some, others, strict=True)
    return max(int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()) for a, b in pairs)


def test_prompts_that_are_encoded_some_at_a_time_are_encoded_the_same(folder, monkeypatch) -> None:
    made = load(folder)
    whole = made.encode(PROMPTS)
    monkeypatch.setattr(base, "ENCODED", 2)
    found = made.encode_many(PROMPTS)
    assert found.tensors.keys() == whole.tensors.keys() and len(found) == len(PROMPTS)
    for name, tensor in whole.tensors.items():
        assert found.tensors[name].device.type == "cpu"
        torch.testing.assert_close(found.tensors[name], tensor)


def test_every_family_is_tried_here(tmp_path: Path) -> None:
    tried = {type(make(tiny_diffusion.pipeline(tmp_path))).__name__ for make in tiny_families.FAMILIES.values()}
    assert tried == set(families())


@pytest.mark.parametrize("negative", ["", "dark"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.slow
def test_a_rollout_without_noise_draws_what_diffusers_own_pipeline_draws(folder, guidance, negative) -> None:
    """Encode, predict, transition, decode, against the pipeline's call with prompts alone; one image at a time."""
    if negative and guidance == 1:
        pytest.skip("a negative prompt without guidance is refused")
    made = load(folder, training=True, guidance=guidance, negative_prompt=negative)
    drawn = [rolled(made, 0.0, [prompt], [seed]).images[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    theirs = diffusers_own(folder)
    if made.rollouts == "ddim":
        theirs.scheduler = made.pipe.scheduler
    own = {"max_sequence_length": 3} if folder.name in ("sd3", "flux") else {}
    width, height = tiny_families.SIZE
    for image, prompt, seed in zip(drawn, PROMPTS, SEEDS, strict=True):
        [expected] = theirs(
            prompt,
            negative_prompt=negative or None,
            guidance_scale=guidance,
            num_inference_steps=made.settings.steps,
            generator=generators([seed]),
            height=height,
            width=width,
            **own,
        ).images
        assert image.size == (width, height)
        assert apart([image], [expected]) <= 1


def diffusers_own(folder: Path) -> DiffusionPipeline:
    extra = {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "sd3" else {}
    theirs = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **extra)
    theirs.set_progress_bar_config(disable=True)
    return theirs


@pytest.mark.parametrize("schedule", [{}, {"base_shift": 0.2, "max_shift": 2.0, "time_shift_type": "linear"}])
def test_a_schedule_that_is_shifted_with_the_size_is_that_of_the_arms(tmp_path, schedule, monkeypatch) -> None:
    folder = tiny_families.checkpoint("sd3", tmp_path)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dynamic_shifting": True} | schedule))
    made = load(folder, training=True)
    assert apart(rolled(made, 0.0).images, made.draw(PROMPTS, SEEDS)) <= 1
    assert torch.equal(made.schedule(made.settings.steps, "cps", 0.7).timesteps, made.pipe.scheduler.timesteps)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert apart(load(folder, compile=True).draw(PROMPTS, SEEDS), made.draw(PROMPTS, SEEDS)) == 0


def test_the_arms_are_drawn_as_diffusers_draws_them(folder) -> None:
    made = load(folder)
    width, height = tiny_families.SIZE
    theirs = diffusers_own(folder)
    theirs.scheduler = made.pipe.scheduler
    own = {"max_sequence_length": 3} if folder.name in ("sd3", "flux") else {}
    expected = theirs(
        PROMPTS,
        guidance_scale=3.0,
        num_inference_steps=made.settings.steps,
        generator=generators(SEEDS),
        height=height,
        width=width,
        **own,
    ).images
    assert apart(made.draw(PROMPTS, SEEDS), expected) <= 1


@pytest.mark.slow
def test_prompts_negative_prompts_and_noise_count(folder) -> None:
    """Else the comparisons with diffusers above would say nothing."""
    made = load(folder)
    base = made.draw(PROMPTS[:1], [1])
    assert apart(base, made.draw(PROMPTS[1:2], [1])) > 1
    assert apart(base, made.draw(PROMPTS[:1], [2])) > 1
    assert apart(base, load(folder, negative_prompt="two dogs").draw(PROMPTS[:1], [1])) > 1
    assert apart(base, load(folder, guidance=1.0).draw(PROMPTS[:1], [1])) > 1


@pytest.mark.parametrize("level", [0.0, 0.7])
@pytest.mark.slow
def test_a_image_does_not_depend_on_its_batch(folder, level) -> None:
    made = load(folder, training=True)
    together = rolled(made, level).images
    alone = [rolled(made, level, [prompt], [seed]).images[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert apart(together, alone) <= 1
    if not level:
        arms = load(folder)
        drawn = [arms.draw([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
        assert apart(arms.draw(PROMPTS, SEEDS), drawn) <= 1


def trainer(folder: Path, work: Path, reward=None, **changes) -> Trainer:
    made = load(folder, training=True, guidance=2.0)
    config = tiny_diffusion.finetune(**{"lora_targets": "auto", "min_sigma": 0.02} | changes)
    work.mkdir(parents=True, exist_ok=True)
    return Trainer(
        made,
        made.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, 5),
        PROMPTS,
        Scorer(reward or (lambda images, prompts: [0.0] * len(images))),
        lambda images: {"brightness": 0.0, "contrast": 0.0, "sharpness": 0.0},
        model=made.settings,
        finetune=config,
        seed=5,
        folder=work,
    )


@pytest.mark.slow
def test_a_replayed_rollout_has_a_ratio_of_1_at_every_step_and_batch_size(folder, tmp_path) -> None:
    for batch_size in (16, 1):
        for kind in load(folder).noises:
            noise = {"kind": kind, "level": 0.7, "window": None}
            floors = trainer(folder, tmp_path / kind, train_batch_size=batch_size, noise=noise).preflight()
            assert len(floors) >= 3
            assert max(floors.values()) < 1e-5


def test_the_kl_of_a_fresh_adapter_is_0_and_it_changes_nothing(folder, tmp_path) -> None:
    made = trainer(folder, tmp_path)
    trajectories = made.draw(torch.tensor([0, 1, 2]), SEEDS)
    assert kl_to_base(made.replay, trajectories, made.steps, torch.Generator(), 64) == 0
    plain = load(folder, guidance=2.0)
    assert apart(made.image_model.draw(PROMPTS, SEEDS), plain_with(made, plain).draw(PROMPTS, SEEDS)) == 0


def plain_with(made: Trainer, plain: ImageModel) -> ImageModel:
    """The model without an adapter, under the scheduler that training takes."""
    plain.pipe.scheduler = made.image_model.pipe.scheduler
    return plain


@pytest.mark.slow
def test_a_saved_adapter_draws_the_same_through_diffusers_own_loader(folder, tmp_path) -> None:
    made = load(folder, training=True)
    for parameter in made.add_adapter(2, 4, [], 1):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    made.save_adapter(tmp_path / "lora")
    changed = made.draw(PROMPTS, SEEDS)
    fresh = load(folder, training=True)
    assert apart(fresh.draw(PROMPTS, SEEDS), changed) > 1
    fresh.pipe.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")
    assert apart(fresh.draw(PROMPTS, SEEDS), changed) <= 1
    ours = load(folder, training=True, adapter=tmp_path / "lora")
    assert apart(ours.draw(PROMPTS, SEEDS), changed) <= 1


@pytest.mark.slow
def test_a_window_of_noise_is_the_same_for_all_images_and_elsewhere_the_steps_are_the_odes(folder, tmp_path) -> None:
    made = trainer(folder, tmp_path, noise={"kind": "auto", "level": 0.7, "window": 1})
    assert made.windows() == [range(0, 1), range(1, 2)]
    found = set()
    for epoch in range(8):
        drawn = made.roll_out(epoch).drawn
        noisy = (made.policy.schedule.sigma > 0).nonzero().flatten().tolist()
        assert noisy == made.steps.tolist() and len(noisy) == 1
        found.add(noisy[0])
        without = [step for step in range(made.model.steps) if step not in noisy]
        assert (drawn.log_probs[:, without] == 0).all() and (drawn.log_probs[:, noisy] != 0).all()
        quiet = made.image_model.schedule(made.model.steps, made.image_model.noises[0], 0.0)
        assert torch.equal(made.policy.schedule.noise_weight[without], quiet.noise_weight[without])
    assert found == {0, 1}


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("window", [3, 20])
def test_a_window_that_does_not_fit_in_the_first_half_of_the_steps_is_refused(window, tmp_path) -> None:
    folder = tiny_families.checkpoint("sd", tmp_path)
    with pytest.raises(UserError, match=r"finetune\.noise\.window: a window of .* set it to 2 at most"):
        trainer(folder, tmp_path / "run", noise={"kind": "auto", "level": 0.7, "window": window})


def test_slicing_that_the_network_cannot_do_is_said(tmp_path, caplog) -> None:
    load(tiny_families.checkpoint("sd3", tmp_path), attention_slicing=True)
    assert "model.attention_slicing: a SD3Transformer2DModel cannot slice its attention" in caplog.text


def refusal(folder: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_noise_that_the_family_does_not_have_is_refused(folder, tmp_path) -> None:
    other = "ddim" if folder.name == "sd3" else "cps"
    with pytest.raises(
        UserError, match=r"finetune\.noise\.kind: a StableDiffusion.*Pipeline has no .*; there are auto, "
    ):
        trainer(folder, tmp_path, noise={"kind": other, "level": 0.7, "window": None})


def test_more_noise_than_the_familys_own_kind_has_is_refused(folder, tmp_path, monkeypatch) -> None:
    """With cps the sine would turn back: less noise, not more."""
    if folder.name == "sd3":
        monkeypatch.setattr(type(load(folder)), "noises", ("cps",))
    with pytest.raises(UserError, match=r"finetune\.noise: level 1\.3: (ddim|cps) has 1 at most"):
        trainer(folder, tmp_path, noise={"kind": "auto", "level": 1.3, "window": None})


def test_a_target_that_matches_no_layer_is_named_though_others_match(folder) -> None:
    with pytest.raises(UserError, match=r"no modules that end in conv9; there are .*to_out\.0"):
        load(folder, training=True).add_adapter(2, 2, ["to_out.0", "conv9"], 0)


def test_a_lacking_part_is_named(folder, tmp_path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / folder.name))
    shutil.rmtree(broken / "vae")
    assert "has no folder vae/" in refusal(broken)


def test_a_scheduler_of_another_family_is_refused(tmp_path) -> None:
    folder = tiny_families.checkpoint("sd3", tmp_path)
    assert "model.scheduler: a StableDiffusion3Pipeline cannot be drawn with ddim; there are auto, euler" in refusal(
        folder, scheduler="ddim"
    )


def test_a_size_that_the_patches_do_not_divide_or_the_positions_do_not_reach_is_refused(tmp_path) -> None:
    folder = tiny_families.checkpoint("sd3", tmp_path)
    load(folder, size=(32, 32))
    assert "beyond the 32 that the model knows" in refusal(folder, size=(40, 16))
    made = load(folder)
    made.network.register_to_config(patch_size=5)
    with pytest.raises(UserError, match="a width of 24 is no multiple of 10, the side of a patch in pixels"):
        made.check_settings()


def test_a_safety_checker_that_the_family_has_not_is_refused(tmp_path) -> None:
    folder = tiny_families.checkpoint("sdxl", tmp_path)
    assert "has no safety checker; set model.safety_checker to off" in refusal(folder, safety_checker="report")


def test_a_model_of_few_steps_is_refused_for_training_alone(folder, tmp_path) -> None:
    distilled = Path(shutil.copytree(folder, tmp_path / folder.name))
    index = distilled / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": True}))
    assert "is distilled to few steps" in refusal(distilled, training=True)


def test_quantisation_without_a_gpu_is_refused(folder) -> None:
    assert "model.quantisation: 4bit needs a CUDA GPU" in refusal(folder, quantisation="4bit")


def test_the_tokenizer_that_reads_the_longest_text_counts(folder) -> None:
    assert loading.load_tokenizer(settings(folder)).model_max_length == tiny_families.TOKENS


def test_steps_of_ddim_and_of_a_flow_are_made_by_one_formula() -> None:
    """CPS is DDIM's step with (sqrt(a), sqrt(1 - a)) replaced by (1 - s, s): both keep the sum of squares."""
    ddim = Schedule.ddim(DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False), 10, 0.7)
    levels = torch.linspace(1, 0, 11)
    cps = Schedule.flow(levels[:-1] * 1000, levels, "cps", 0.7)
    for schedule in (ddim, cps):
        noise_after = (schedule.noise_weight**2 + schedule.sigma**2).sqrt()
        torch.testing.assert_close(noise_after[:-1], schedule.noise[1:], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(schedule.clean_weight[:-1], schedule.signal[1:], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 1.43, 3.0])
def test_the_first_step_of_flow_sde_has_the_second_levels_noise_however_the_first_level_is_rounded(shift) -> None:
    """Shifted by 1.43, pure noise comes out of float32 as 0.99999994."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    levels = scheduler.sigmas
    assert (levels[0] < 1) == (shift == 1.43)
    found = Schedule.flow(scheduler.timesteps, levels, "flow_sde", 0.7)
    second, length = float(levels[1]), float(levels[0] - levels[1])
    assert float(found.sigma[0]) == pytest.approx(0.7 * (length / (1 - second)) ** 0.5, rel=1e-5)
    assert float(found.noise_weight[0]) > 0
