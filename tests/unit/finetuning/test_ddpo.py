"""The trainer, point by point: each of these has bitten a public implementation of DDPO."""

import copy
import math
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_diffusion
import torch
from PIL import Image

from t2i_feedback.finetuning import checkpoint, objectives, progress
from t2i_feedback.finetuning.acquisition import Scorer
from t2i_feedback.finetuning.advantages import advantages
from t2i_feedback.finetuning.monitoring import diversity, kl_to_base
from t2i_feedback.finetuning.rollout import roll_out
from t2i_feedback.finetuning.scores import from_reward
from t2i_feedback.finetuning.stopping import beyond_bounds, epochs_learnt
from t2i_feedback.finetuning.trainer import Trainer
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import EpochRow, read_rows
from t2i_feedback.image_models.loading import load_image_model

REPOSITORY = Path(__file__).parents[3]
MARGIN = 10.0  # of 255 grey levels; rewards rise by 20 to 30
PROMPTS = ["a cat", "two dogs", "a red house"]


def darkness(images, prompts):
    return [255.0 - float(np.asarray(image).mean()) for image in images]


def nothing(images):
    return {"brightness": 0.0, "contrast": 0.0, "sharpness": 0.0}


@pytest.fixture
def make(checkpoint_folder, tmp_path):
    """A trainer on a fresh copy of the tiny pipeline; keywords change the fine-tuning section."""

    def build(reward=darkness, folder=tmp_path / "run", seed=5, held_out=None, **changes):
        model = tiny_diffusion.model(name=str(checkpoint_folder))
        config = tiny_diffusion.finetune(**changes)
        image_model = load_image_model(model)
        parameters = image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, seed)
        folder.mkdir(exist_ok=True)
        scorer = Scorer(reward, overlap=config.overlap_judging)
        return Trainer(
            image_model,
            parameters,
            PROMPTS,
            scorer,
            nothing,
            model=model,
            finetune=config,
            seed=seed,
            folder=folder,
            held_out=held_out,
        )

    return build


def scored(rewards, prompts, **settings):
    """Advantages of rewards, None = no score."""
    return advantages(from_reward(rewards), prompts, clip=5, **{"per_prompt": True} | settings)


def replay(trainer, drawn, batch_size):
    """Importance ratios [images, steps] of trajectories under the present policy."""
    images, steps = drawn.log_probs.shape
    every = torch.arange(images * steps)
    log_prob = trainer.replay.log_prob
    with torch.no_grad():
        found = [log_prob(drawn, some // steps, some % steps)[0] for some in every.split(batch_size)]
    return torch.exp(torch.cat(found).view(images, steps) - drawn.log_probs)


def transitions_trained_on(trainer):
    """A list that gets (image, step) of every transition whose loss is taken."""
    used, loss = [], trainer.updater.loss

    def noting(trajectories, found, image, step):
        used.extend(zip(image.tolist(), step.tolist(), strict=True))
        return loss(trajectories, found, image, step)

    trainer.updater.loss = noting
    return used


def test_01_replay_before_any_update_has_a_ratio_of_1_at_every_timestep(make):
    trainer = make()
    drawn = trainer.roll_out(0).drawn
    assert (replay(trainer, drawn, 8) - 1).abs().max() < 1e-5


def test_02_replay_at_another_batch_size_stays_within_a_tenth_of_the_clip_range(make):
    trainer = make()
    drawn = trainer.roll_out(0).drawn
    for batch_size in (1, 3, 40):
        assert (replay(trainer, drawn, batch_size) - 1).abs().max() < 0.1 * trainer.config.clip_range


def test_02_the_merged_adapter_draws_with_the_policy_of_the_adapter_itself(make):
    trainer = make(learning_rate=0.02)
    trainer.run()
    drawn = trainer.roll_out(2).drawn
    assert (replay(trainer, drawn, 8) - 1).abs().max() < 0.1 * trainer.config.clip_range


def test_05_guidance_in_training_must_be_that_of_sampling(make):
    trainer = make()
    trainer.replay.policy = copy.copy(trainer.policy)
    trainer.replay.policy.guidance = 1.5
    with pytest.raises(UserError, match="sampling and training disagree"):
        trainer.preflight()


def test_05_preflight_passes_when_they_agree(make):
    assert max(make().preflight().values()) < 1e-5


def test_05_preflight_passes_on_what_was_learnt_too(make):
    trainer = make(learning_rate=0.02)
    trainer.run()
    assert max(trainer.preflight().values()) < 1e-5


def test_preflight_asks_nobody_and_comes_before_the_first_question(make):
    asked = []
    trainer = make(lambda images, prompts: asked.append(len(images)) or darkness(images, prompts))
    trainer.policy.guidance = float("nan")
    with pytest.raises(UserError, match="not finite"):
        trainer.run()
    assert not asked


def test_06_integer_rewards_give_the_same_advantages_as_floats():
    prompts = ["a", "a", "b", "b"]
    whole = scored([1, 2, 3, 5], prompts)
    real = scored([1.0, 2.0, 3.0, 5.0], prompts)
    assert torch.equal(whole.values, real.values)


def test_07_constant_rewards_give_no_advantage_and_count_as_a_dead_group():
    found = scored([2.0, 2.0, 1.0, 3.0], ["a", "a", "b", "b"])
    assert found.values[:2].tolist() == [0, 0]
    assert found.values[2] < 0 < found.values[3]
    assert found.dead_groups == 0.5


def test_07_a_tiny_spread_does_not_explode():
    found = scored([5.0, 5.0 + 1e-9], ["a", "a"])
    assert found.values.abs().max() < 1e-3


def test_08_prompts_that_differ_after_the_token_window_stay_apart():
    long = "a " * 90
    found = scored([1.0, 1.0, 9.0, 9.0], [long + "cat", long + "cat", long + "dog", long + "dog"])
    assert found.values.tolist() == [0, 0, 0, 0]
    assert found.dead_groups == 1


def test_per_batch_advantages_compare_across_prompts():
    found = scored([1.0, 1.0, 9.0, 9.0], ["a", "a", "b", "b"], per_prompt=False)
    assert found.values.tolist() == [-1, -1, 1, 1]


@pytest.mark.slow
def test_09_stopping_and_resuming_equals_an_uninterrupted_run(make, tmp_path):
    whole = make(folder=tmp_path / "whole", epochs=4)
    expected = whole.run()
    make(folder=tmp_path / "parts", epochs=2).run()
    resumed = make(folder=tmp_path / "parts", epochs=4)
    found = resumed.run()
    for mine, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(
        resumed.optimiser.state_dict()["state"].values(), whole.optimiser.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert found == expected


@pytest.mark.slow
def test_09_an_epoch_cut_off_in_the_middle_is_done_again(make, tmp_path):
    expected = make(folder=tmp_path / "whole", epochs=2).run()
    calls = 0

    def dies_once(images, prompts):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return darkness(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        make(dies_once, folder=tmp_path / "cut", epochs=2).run()
    found = make(folder=tmp_path / "cut", epochs=2).run()
    assert found[-1].reward_mean == expected[-1].reward_mean


def test_10_a_half_written_checkpoint_is_not_taken_for_one(make, tmp_path):
    trainer = make()
    checkpoint.save(trainer.folder, 1, trainer.parameters, trainer.optimiser, {}, [])
    (trainer.folder / "checkpoint-00002").mkdir()
    (trainer.folder / "checkpoint-00002/.state.pt.partial").touch()
    assert checkpoint.load_latest(trainer.folder, trainer.parameters, trainer.optimiser) == (1, {}, [])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_10_a_checkpoint_that_was_cut_short_gives_way_to_the_one_before_it(make, tmp_path, share, capsys):
    trainer = make()
    for epoch in (1, 2):
        checkpoint.save(trainer.folder, epoch, trainer.parameters, trainer.optimiser, {}, [])
    last = trainer.folder / "checkpoint-00002/state.pt"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    assert checkpoint.load_latest(trainer.folder, trainer.parameters, trainer.optimiser) == (1, {}, [])
    assert "checkpoint-00002/state.pt is damaged" in capsys.readouterr().err


def test_a_checkpoint_of_another_adapter_is_refused(make):
    make(epochs=1).run()
    with pytest.raises(UserError, match="of another adapter"):
        make(epochs=2, lora_rank=2).run()


def test_10_only_the_last_checkpoints_are_kept(make):
    trainer = make(epochs=3, keep_last=1)
    trainer.run()
    assert [path.name for path in sorted(trainer.folder.glob("checkpoint-*"))] == ["checkpoint-00003"]


def test_12_gradients_do_not_depend_on_how_many_transitions_are_taken_at_once(make, tmp_path):
    learnt = []
    for size in (40, 1):
        trainer = make(folder=tmp_path / str(size), train_batch_size=size, updates_per_epoch=1, clip_range=1.0)
        drawn = trainer.roll_out(0)
        norm = trainer.update(0, drawn, scored(darkness(drawn.images, []), drawn.prompts))["grad_norm"]
        learnt.append(norm)
    assert learnt[0] == pytest.approx(learnt[1], rel=1e-4)


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        (11, [10, 10]),  # two images of five steps: no tenth is left out
        (8, [8, 8, 4]),  # one image alone would leave out more
        (100, [20]),
    ],
)
def test_train_batch_size_is_filled_with_whole_images_where_that_leaves_out_no_more_than_a_tenth(make, limit, taken):
    trainer = make(train_batch_size=limit, updates_per_epoch=1, prompts_per_epoch=2, images_per_prompt=2)
    drawn = trainer.roll_out(0)
    rows = []
    trainer.image_model.network.register_forward_pre_hook(lambda unet, given: rows.append(len(given[0])))
    trainer.update(0, drawn, scored(darkness(drawn.images, []), drawn.prompts))
    assert rows == [2 * count for count in taken]  # once with the prompt, once without


@pytest.mark.parametrize("chosen", [2, 4])
def test_12_the_gradient_is_that_of_the_mean_loss_over_the_transitions(make, chosen):
    """Not of their sum: AdamW would hide that, and clipping by the norm would then scale with the batch."""
    trainer = make(clip_range=1.0, max_grad_norm=1e9, train_batch_size=3)
    drawn = trainer.roll_out(0)
    found = scored(darkness(drawn.images, []), drawn.prompts)
    images, steps = torch.arange(chosen), torch.arange(2)
    image, step = images.repeat_interleave(len(steps)), steps.repeat(chosen)
    trainer.updater.loss(drawn.drawn, found, image, step)[0].backward()  # the mean over all of them at once
    mean = torch.nn.utils.parameters_to_vector([parameter.grad for parameter in trainer.parameters])
    trainer.updater.optimiser.zero_grad(set_to_none=True)
    trainer.updater.accumulate(0, drawn.drawn, found, images, steps)
    norm = trainer.updater.step(0, chosen * len(steps))
    assert norm > 0
    assert norm == pytest.approx(float(mean.norm()), rel=1e-3)


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_12_gradients_do_not_depend_on_gradient_checkpointing(make, kl_weight):
    plain, checkpointed = (make(gradient_checkpointing=on, kl_weight=kl_weight, clip_range=1.0) for on in (False, True))
    for trainer in (plain, checkpointed):
        assert trainer.image_model.network.is_gradient_checkpointing == (trainer is checkpointed)
        for parameter in trainer.parameters:  # away from the base
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    drawn = plain.roll_out(0)
    found = scored(darkness(drawn.images, []), drawn.prompts)
    for trainer in (plain, checkpointed):
        trainer.updater.accumulate(0, drawn.drawn, found, torch.arange(4), torch.arange(2))
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in plain.parameters)
    found, expected = ([parameter.grad for parameter in trainer.parameters] for trainer in (checkpointed, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_13_a_transition_keeps_its_latent_next_latent_timestep_and_log_prob_together(make):
    trainer = make()
    drawn = trainer.roll_out(0).drawn
    image, step = torch.tensor([3, 0, 7, 2]), torch.tensor([4, 1, 0, 2])
    with torch.no_grad():
        found = trainer.replay.log_prob(drawn, image, step)[0]
    torch.testing.assert_close(found, drawn.log_probs[image, step], atol=1e-5, rtol=0)


def test_14_a_new_adapter_changes_nothing_and_a_saved_one_draws_the_same_after_loading(
    make, checkpoint_folder, tmp_path
):
    untouched = load_image_model(tiny_diffusion.model(name=str(checkpoint_folder)))
    drawn = np.asarray(untouched.draw(["a cat"], [3])[0])
    trainer = make(learning_rate=0.05)
    assert np.array_equal(drawn, np.asarray(trainer.image_model.draw(["a cat"], [3])[0]))
    trainer.run()
    trained = np.asarray(trainer.image_model.draw(["a cat"], [3])[0])
    assert not np.array_equal(drawn, trained)
    trainer.image_model.save_adapter(tmp_path / "adapter")
    fresh = load_image_model(tiny_diffusion.model(name=str(checkpoint_folder)), tmp_path / "adapter")
    again = np.asarray(fresh.draw(["a cat"], [3])[0])
    assert np.abs(again.astype(int) - trained.astype(int)).max() <= 1


@pytest.mark.slow
def test_15_scores_asked_for_while_drawing_train_the_same_adapter(make, tmp_path):
    """In batches of three images, so that the last answers come after the first questions of the next batch."""
    learnt = []
    for overlap in (False, True):
        trainer = make(folder=tmp_path / str(overlap), overlap_judging=overlap)
        trainer.model = trainer.model.model_copy(update={"batch_size": 3})
        history = trainer.run()
        learnt.append((history, trainer.parameters))
    assert learnt[0][0] == learnt[1][0]
    assert all(torch.equal(a, b) for a, b in zip(learnt[0][1], learnt[1][1], strict=True))


def test_15_a_judge_that_fails_in_its_thread_stops_the_run(make):
    def broken(images, prompts):
        raise UserError("the judge is gone")

    with pytest.raises(UserError, match="the judge is gone"):
        make(broken, overlap_judging=True).run()


def test_16_a_failing_judge_masks_images_and_nothing_is_learnt_from_them(make, tmp_path):
    def half_blind(images, prompts):
        return [score if i % 2 else None for i, score in enumerate(darkness(images, prompts))]

    found = scored([None, 1.0, None, 3.0], ["a"] * 4)
    assert found.valid.tolist() == [False, True, False, True]
    trainer = make(half_blind, updates_per_epoch=1)
    drawn = trainer.roll_out(0)
    used = transitions_trained_on(trainer)
    trainer.update(0, drawn, scored(half_blind(drawn.images, []), drawn.prompts))
    assert {image for image, _ in used} == {1, 3, 5, 7}


def test_16_too_many_masked_images_of_an_epoch_stop_it_however_they_were_asked_about(make):
    """One of every batch of four is masked: a quarter of the epoch."""

    def one_blind_eye(images, prompts):
        return [None, *darkness(images[1:], prompts)]

    trainer = make(one_blind_eye, overlap_judging=True, max_invalid_fraction=0.2)
    trainer.model = trainer.model.model_copy(update={"batch_size": 4})
    with pytest.raises(UserError, match=r"2 of the 8 images asked about have no valid score, more than .* 0\.2 "):
        trainer.run()
    trainer = make(one_blind_eye, overlap_judging=True, max_invalid_fraction=0.25, epochs=1)
    trainer.model = trainer.model.model_copy(update={"batch_size": 4})
    assert trainer.run()[0].masked == 2


@pytest.mark.slow
def test_17_kl_to_the_base_is_0_at_first_and_grows_with_training(make):
    trainer = make(learning_rate=0.05, epochs=3)
    drawn = trainer.roll_out(0).drawn
    assert kl_to_base(trainer.replay, drawn, trainer.steps, torch.Generator(), 64) == 0
    history = trainer.run()
    assert history[-1].kl > 0


@pytest.mark.parametrize("limit", [2, 64])
def test_17_the_kl_is_taken_of_as_many_transitions_at_once_as_an_update_takes(make, limit):
    trainer = make(train_batch_size=limit)
    drawn, rows = trainer.roll_out(0).drawn, []
    trainer.image_model.network.register_forward_pre_hook(lambda unet, given: rows.append(len(given[0])))
    kl_to_base(trainer.replay, drawn, trainer.steps, torch.Generator(), limit)
    assert sum(rows) == 2 * 2 * 8 * 5  # by the policy and by the base, with the prompt and without
    assert max(rows) == 2 * min(limit, 8 * 5)


@pytest.mark.slow
def test_17_a_penalty_on_kl_keeps_the_policy_nearer_to_the_base(make, tmp_path):
    free = make(folder=tmp_path / "free", learning_rate=0.02, epochs=4).run()
    held = make(folder=tmp_path / "held", learning_rate=0.02, epochs=4, kl_weight=100.0).run()
    assert 0 < held[-1].kl < free[-1].kl


@pytest.mark.slow
def test_17_training_ends_before_the_update_that_goes_beyond_the_bound_on_kl(make, tmp_path):
    free = make(folder=tmp_path / "free", learning_rate=0.02, epochs=4).run()
    bound = (free[1].kl + free[2].kl) / 2
    assert free[0].kl < free[1].kl < bound < free[2].kl
    trainer = make(folder=tmp_path / "held", learning_rate=0.02, epochs=4, max_kl=bound)
    history = trainer.run()
    assert [row.epoch for row in history] == [1, 2, 3]
    assert "finetune.max_kl" in beyond_bounds(history, trainer.config)
    second = make(folder=tmp_path / "two", learning_rate=0.02, epochs=2)
    assert kl_last(trainer, history) == second.run()[-1].kl
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, second.parameters, strict=True))


def kl_last(trainer, history):
    """What numbers.json says of the adapter that training ended with."""
    return progress.summary(history, epochs_learnt(history, trainer.config))["kl_last"]


def test_17_a_run_that_ended_at_a_bound_is_not_continued(make):
    first = make(learning_rate=0.02, epochs=4, max_kl=1e-12).run()
    asked = []
    again = make(
        lambda images, prompts: asked.append(1) or darkness(images, prompts), learning_rate=0.02, epochs=4, max_kl=1e-12
    ).run()
    assert first == again
    assert len(first) == 1
    assert not asked


@pytest.mark.slow
def test_17_training_ends_when_the_held_out_judge_turns_away(make, tmp_path):
    falling = iter([9.0, 8.5, 6.0, 1.0])

    def turns_away(images, prompts):
        return [next(falling)] * len(images)

    trainer = make(folder=tmp_path / "bound", held_out=turns_away, epochs=4, max_held_out_drop=1.0)
    history = trainer.run()
    assert [row.held_out_mean for row in history] == [9.0, 8.5, 6.0]
    assert "finetune.max_held_out_drop" in beyond_bounds(history, trainer.config)
    liked = make(folder=tmp_path / "liked", epochs=1)  # what drew the second epoch's images
    assert kl_last(trainer, history) == liked.run()[-1].kl
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, liked.parameters, strict=True))


@pytest.mark.slow
def test_17_an_epoch_beyond_both_bounds_leaves_an_adapter_that_is_within_both(make, tmp_path):
    free = make(folder=tmp_path / "free", learning_rate=0.02, epochs=3).run()
    bound, falling = (free[1].kl + free[2].kl) / 2, iter([9.0, 8.5, 6.0])
    trainer = make(
        folder=tmp_path / "bounds",
        held_out=lambda images, prompts: [next(falling)] * len(images),
        learning_rate=0.02,
        epochs=4,
        max_kl=bound,
        max_held_out_drop=1.0,
    )
    told = []
    history = trainer.run(on_adapter=told.append)
    assert told == [0, 1, 2, 1]
    why = beyond_bounds(history, trainer.config)
    assert "finetune.max_kl" in why and "finetune.max_held_out_drop" in why
    liked = make(folder=tmp_path / "liked", learning_rate=0.02, epochs=1)
    assert kl_last(trainer, history) == liked.run()[-1].kl
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, liked.parameters, strict=True))


@pytest.mark.slow
def test_17_a_resumed_run_knows_the_last_adapter_that_the_held_out_judge_liked(make, tmp_path):
    scores = iter([9.0, 8.5, 6.0])

    def turns_away(images, prompts):
        return [next(scores)] * len(images)

    make(folder=tmp_path / "bound", held_out=turns_away, epochs=2, max_held_out_drop=1.0).run()
    trainer = make(folder=tmp_path / "bound", held_out=turns_away, epochs=4, max_held_out_drop=1.0)
    trainer.run()
    liked = make(folder=tmp_path / "liked", epochs=1)
    liked.run()
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, liked.parameters, strict=True))


def test_a_reward_that_is_constant_over_the_first_epoch_is_refused(make):
    with pytest.raises(UserError, match="every image got the reward 5"):
        make(lambda images, prompts: [5.0] * len(images)).run()


def test_a_reward_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make):
    make(epochs=1).run()
    with pytest.raises(UserError, match="a reward is not finite"):
        make(lambda images, prompts: [float("inf"), *darkness(images[1:], prompts)], epochs=2).run()
    again = make(epochs=2)
    assert checkpoint.load_latest(again.folder, again.parameters, again.optimiser)[0] == 1


def test_a_image_of_half_weight_has_half_the_advantage_and_half_the_say_in_the_mean():
    found = scored([0.0, 3.0], ["a", "a"], weights=torch.tensor([1.0, 0.5], dtype=torch.float64))
    centred = torch.tensor([-1.0, 2.0])
    spread = ((1.0 + 0.5 * 4.0) / 1.5) ** 0.5
    torch.testing.assert_close(found.values, centred / spread * torch.tensor([1.0, 0.5]))


def test_19_the_judge_sees_the_pixels_that_would_be_saved(make, tmp_path):
    seen = []

    def look(images, prompts):
        seen.extend(images)
        return darkness(images, prompts)

    make(look, epochs=1).run()
    assert len(seen) == 8
    seen[0].save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.tobytes() == seen[0].tobytes()


def test_a_ratio_outside_the_clip_range_earns_no_more(make):
    trainer = make(learning_rate=1e-9)
    drawn, image, step = trainer.roll_out(0).drawn, torch.tensor([0]), torch.tensor([0])
    drawn.log_probs[0, 0] -= 0.01  # by which the present policy is likelier to take this step
    good, bad = (trainer.objective.loss(drawn, torch.tensor([sign]), image, step).value for sign in (1.0, -1.0))
    assert good.item() == pytest.approx(-1.0001, abs=1e-6)
    assert bad.item() == pytest.approx(math.exp(0.01), abs=1e-5)
    good.backward()
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in trainer.parameters)


def test_ratios_outside_the_clip_range_are_counted(make):
    trainer = make()
    drawn = trainer.roll_out(0)
    drawn.drawn.log_probs[0, 0] += 0.01
    image, step = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    found = trainer.updater.loss(drawn.drawn, scored(darkness(drawn.images, []), drawn.prompts), image, step)
    torch.testing.assert_close(found.ratio, torch.tensor([-0.01, 0.0, 0.0]).exp(), atol=1e-5, rtol=0)
    assert found.clipped.tolist() == [True, False, False]


@pytest.mark.slow
def test_a_new_objective_is_one_new_file(make, tmp_path, monkeypatch):
    documented = (REPOSITORY / "docs/objectives.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "new_in_this_test.py").write_text(documented)
    before = objectives.names()
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    assert set(objectives.names()) - set(before) == {"new_in_this_test"}
    trainers = [make(folder=tmp_path / name, epochs=1, objective=name) for name in ("ddpo", "new_in_this_test")]
    for trainer in trainers:
        before = [parameter.detach().clone() for parameter in trainer.parameters]
        trainer.run()
        assert not all(torch.equal(a, b) for a, b in zip(trainer.parameters, before, strict=True))
    one, other = trainers
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))


def test_an_objective_that_is_no_file_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="no objective is called 'grpo'; there are ddpo"):
        tiny_diffusion.finetune(objective="grpo")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make):
    trainer = make(epochs=1)
    trainer.run()
    saved = copy.deepcopy([p.detach() for p in trainer.parameters])
    broken = make(epochs=2)
    broken.preflight = lambda: None
    broken.replay.log_prob = lambda drawn, image, step: (torch.full((len(image),), float("nan")), torch.zeros(1))
    with pytest.raises(UserError, match="last good checkpoint"):
        broken.run()
    again = make(epochs=2)
    assert checkpoint.load_latest(again.folder, again.parameters, again.optimiser)[0] == 1
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, saved, strict=True))


@pytest.fixture(scope="module")
def darkened(tmp_path_factory):
    """The shipped model trained for six epochs on darkness: seed -> the trainer and its history."""
    prompts = ["a red house in a meadow", "a green tree in the snow", "a white boat on a lake"]
    model = tiny_diffusion.model(name="models/postcards/sd", size=64, steps=5, guidance=1.0, batch_size=24)
    config = tiny_diffusion.finetune(
        epochs=6,
        prompts_per_epoch=3,
        images_per_prompt=8,
        updates_per_epoch=4,
        train_batch_size=24,
        min_sigma=0.05,
        learning_rate=0.001,
        clip_range=0.001,
        lora_targets=["conv1", "conv2", "to_out.0", "time_emb_proj"],
    )

    @cache
    def train(seed):
        image_model = load_image_model(model)
        parameters = image_model.add_adapter(config.lora_rank, config.lora_alpha, config.lora_targets, seed)
        folder = tmp_path_factory.mktemp(f"seed-{seed}")
        trainer = Trainer(
            image_model,
            parameters,
            prompts,
            Scorer(darkness),
            nothing,
            model=model,
            finetune=config,
            seed=seed,
            folder=folder,
        )
        return trainer, trainer.run()

    return train


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.slow
def test_training_on_darkness_darkens(darkened, seed):
    """The golden learning test: the mean reward of the last three epochs against that of the first three."""
    rewards = [row.reward_mean for row in darkened(seed)[1]]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + MARGIN


@pytest.mark.slow
def test_18_what_was_learnt_shows_with_the_sampler_of_training_and_with_the_deterministic_one(darkened):
    trainer, _ = darkened(1)
    found = []
    for policy in (trainer.image_model.adapter.base, nullcontext):
        with policy():
            index = torch.arange(12) % 3
            drawn = roll_out(trainer.policy, trainer.replay.prompts, index, range(12))
            deterministic = trainer.image_model.draw(trainer.prompts * 4, range(12))
        found.append([np.mean(darkness(images, [])) for images in (drawn.images, deterministic)])
    before, trained = found
    assert trained[0] > before[0] + MARGIN
    assert trained[1] > before[1] + MARGIN


def test_more_processes_than_images_of_an_update_are_refused(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(UserError, match="an update's 4 images cannot be divided among 5 processes"):
        make()


def test_steps_of_little_noise_are_not_trained_on(make):
    trainer = make()
    least = float(trainer.policy.schedule.sigma.min())
    trainer = make(min_sigma=least * 1.01)
    assert len(trainer.steps) == len(trainer.policy.schedule) - 1
    drawn = trainer.roll_out(0)
    used = transitions_trained_on(trainer)
    trainer.update(0, drawn, scored(darkness(drawn.images, []), drawn.prompts))
    assert {step for _, step in used} == set(trainer.steps.tolist())


def test_a_bound_on_noise_that_leaves_no_step_is_refused(make):
    with pytest.raises(UserError, match=r"finetune\.min_sigma: no step has as much noise as 2"):
        make(min_sigma=2.0)


def test_diversity_is_0_for_copies_and_grows_with_difference():
    dark, light = (Image.new("RGB", (4, 4), (value,) * 3) for value in (0, 100))
    assert diversity([dark, dark], ["a", "a"]) == 0
    assert diversity([dark, light], ["a", "a"]) == 100
    assert diversity([dark, light], ["a", "b"]) == 0


def test_history_survives_on_disk(make):
    trainer = make(epochs=2)
    history = trainer.run()
    assert read_rows(trainer.folder / "history.jsonl", EpochRow) == history
