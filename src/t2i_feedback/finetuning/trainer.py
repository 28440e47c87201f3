"""Fine-tune the adapter of a diffusion model on rewards: roll out, score, update; epoch by epoch.

Batch arithmetic of one epoch, with the default parameters:

    prompts_per_epoch 8 x images_per_prompt 8 = 64 images, 64 judge calls
    inner_epochs 1 x updates_per_epoch 4      = 4 optimiser steps on 16 images each
    16 images x 3 of 9 steps (timestep_share 0.34) = 48 transitions per optimiser step, up to train_batch_size at a time
    (10 steps, but the last has less noise than min_sigma)

Gradients are averaged over an optimiser step's transitions, so `train_batch_size` changes memory, speed and rounding,
and so does the number of processes: each has an equal part of the images of every optimiser step. An image's
trajectory stays in the process that drew it; images, scores and gradients are combined.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import torch
from PIL import Image

from t2i_feedback.finetuning import checkpoint, objectives, optimiser, preflight, progress
from t2i_feedback.finetuning.acquisition import Reward, Scorer
from t2i_feedback.finetuning.advantages import Advantages, advantages
from t2i_feedback.finetuning.monitoring import diversity, kl_to_base
from t2i_feedback.finetuning.objective import PolicyGradient
from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import (
    Drawn,
    Rollout,
    Trajectories,
    choose_prompts,
    chunks,
    draw_finals,
    gather_images,
    joined,
    local_indices,
    roll_out,
)
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.finetuning.stopping import check_scores, epochs_learnt
from t2i_feedback.finetuning.update import Updater
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import EpochRow, read_rows, write_rows
from t2i_feedback.foundation.seeds import generator, noise_seed
from t2i_feedback.image_models.base import ImageModel, Policy
from t2i_feedback.image_models.section import Model
from t2i_feedback.image_models.transitions import Schedule

Measure = Callable[[list[Image.Image]], dict[str, float]]

HISTORY = "history.jsonl"
SAMPLES = 3  # prompts whose images show how the adapter learns


class Trainer:
    """Trains the adapter that an image model's network carries (`ImageModel.add_adapter`), `parameters`.

    `scorer` scores the images as saved. `held_out`, if given, is a second judge that rewards nothing: it is logged, and
    `max_held_out_drop` ends training by it. `measure` returns photometric means by name. `folder` holds checkpoints and
    history.
    """

    def __init__(
        self,
        image_model: ImageModel,
        parameters: list[torch.nn.Parameter],
        prompts: Sequence[str],
        scorer: Scorer,
        measure: Measure,
        *,
        model: Model,
        finetune: Finetune,
        seed: int,
        folder: Path,
        held_out: Reward | None = None,
    ):
        self.image_model, self.parameters, self.prompts = image_model, parameters, list(prompts)
        self.scorer, self.measure = scorer, measure
        self.held_out = Scorer(held_out) if held_out else None
        self.model, self.config, self.seed, self.folder = model, finetune, seed, folder
        chunk = finetune.images_per_epoch // finetune.updates_per_epoch
        if distributed.world_size() > chunk:
            raise UserError(
                f"finetune.updates_per_epoch: an update's {chunk} images cannot be divided among "
                f"{distributed.world_size()} processes; start fewer, or make fewer updates of more images"
            )
        if finetune.gradient_checkpointing:
            image_model.network.enable_gradient_checkpointing()
        self.policy = Policy.of(image_model, self.schedule(None))
        self.policy.guidance = finetune.guidance_of(model.guidance)
        for window in self.windows():
            self.policy.schedule = self.schedule(window)
            if not len(self.steps):
                raise UserError(
                    f"finetune.min_sigma: no step has as much noise as {finetune.min_sigma:g}; the most is "
                    f"{float(self.policy.schedule.sigma.max()):.3g}"
                )
        self.optimiser = optimiser.make(finetune, parameters)
        self.replay = Replay(self.policy, image_model.encode_many(self.prompts))
        self.averages = [parameter.detach().clone() for parameter in parameters if finetune.ema]
        self.objective = objectives.load(finetune.objective)(self.replay, parameters, finetune)
        if finetune.noise.window and not self.objective.needs_trajectories:
            raise UserError(
                f"finetune.noise.window: rollouts of {finetune.objective} have no noise, in no window; set it to null"
            )
        self.updater = Updater(self.replay, self.objective, parameters, self.optimiser, finetune, seed, self.averages)

    def windows(self) -> list[range | None]:
        """The runs of steps that may have noise in an epoch: all steps (None), or windows in the first half of them.

        Raises UserError if no window fits in that half.
        """
        size, half = self.config.noise.window, self.config.steps_of(self.model.steps) // 2
        if size is None:
            return [None]
        if size > half:
            raise UserError(
                f"finetune.noise.window: a window of {size} steps does not fit in the first half of a rollout's "
                f"{self.config.steps_of(self.model.steps)}; set it to {half} at most, or to null for noise in all steps"
            )
        return [range(first, first + size) for first in range(half - size + 1)]

    def schedule(self, noisy: range | None, level: float | None = None) -> Schedule:
        """Of rollouts whose steps `noisy` have noise, `finetune.noise.level` of it unless another level is given.

        Raises UserError if the family has no such noise.
        """
        noise, family = self.config.noise, self.image_model
        kind = family.noises[0] if noise.kind == "auto" else noise.kind
        if kind not in family.noises:
            raise UserError(
                f"finetune.noise.kind: a {family.pipeline} has no {kind}; there are auto, {', '.join(family.noises)}"
            )
        try:
            return family.schedule(
                self.config.steps_of(self.model.steps), kind, noise.level if level is None else level, noisy
            )
        except ValueError as error:
            raise UserError(f"finetune.noise: {error}") from None

    @property
    def steps(self) -> torch.Tensor:
        """Indices of the steps that are trained on: those with enough noise in the present schedule."""
        sigma = self.policy.schedule.sigma
        return ((sigma > 0) & (sigma >= self.config.min_sigma)).nonzero().flatten()

    def run(
        self,
        on_epoch: Callable[[EpochRow], None] = lambda row: None,
        on_adapter: Callable[[int], None] = lambda epochs: None,
    ) -> list[EpochRow]:
        """Train to `epochs`, from the newest checkpoint if there is one. Returns the history of all epochs.

        `on_epoch` is told of every epoch, those of the checkpoint as well. `on_adapter` is called with the number of
        epochs that the adapter has learnt in: when it is as training finds it, and after each epoch.

        It is shorter than `epochs` when a bound was reached; `stopping.beyond_bounds` says which.
        """
        initial = self._copy()
        done, feedback, earlier = checkpoint.load_latest(self.folder, self._tensors, self.optimiser)
        self.scorer.load(feedback)
        earlier = earlier or initial  # the adapter before the last update
        history_path = self.folder / HISTORY
        history = read_rows(history_path, EpochRow)[:done] if history_path.exists() else []
        if len(history) < done:
            raise UserError(f"{history_path} has lost epochs that {self.folder} has checkpoints of; delete that folder")
        for row in history:
            on_epoch(row)
        self.preflight()
        on_adapter(learnt := epochs_learnt(history, self.config))
        for epoch in range(done, self.config.epochs):
            if learnt < epoch:
                break
            before = self._copy()
            history.append(self.epoch(epoch))
            learnt = epochs_learnt(history, self.config)
            if learnt <= epoch:
                for tensor, value in zip(self._tensors, before if learnt == epoch else earlier, strict=True):
                    tensor.data.copy_(value)
            self._keep(epoch + 1, history, before)
            earlier = before
            on_epoch(history[-1])
            on_adapter(learnt)
        return history

    def _copy(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]

    @property
    def _tensors(self) -> list[torch.Tensor]:
        """All that updates change but the optimiser's own."""
        return [*self.parameters, *self.averages]

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Within it the adapter is the one that the arms draw with: the moving average, where there is one."""
        present = [parameter.data for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.averages, strict=bool(self.averages)):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, present, strict=True):
                parameter.data = value

    def _keep(self, epochs: int, history: list[EpochRow], before: list[torch.Tensor]) -> None:
        """Write what a later run needs to go on from here. Raises UserError if the processes have drifted apart."""
        sums = torch.zeros(distributed.world_size(), dtype=torch.float64)
        sums[distributed.rank()] = sum(float(tensor.detach().cpu().double().sum()) for tensor in self._tensors)
        if (distributed.all_reduce(sums) != sums[0]).any():
            raise UserError(f"epoch {epochs}: the processes' adapters differ; the last good checkpoint is kept")
        if distributed.is_main():
            write_rows(self.folder / HISTORY, history)
            checkpoint.save(self.folder, epochs, self._tensors, self.optimiser, self.scorer.state(), before)
            checkpoint.keep_last(self.folder, self.config.keep_last)
        distributed.barrier()  # nobody goes on before it is written

    def epoch(self, epoch: int) -> EpochRow:
        """One rollout, its scores, and the updates. Raises UserError when training would go wrong."""
        rollout = self.roll_out(epoch)
        images, prompts = rollout.images, rollout.prompts
        scores = self.scorer.scores(epoch, images, prompts)
        held_out = self.held_out.scores(epoch, images, prompts).valid() if self.held_out else []
        check_scores(epoch, scores, self.config, self.scorer.rewards, self.scorer.describe_invalid)
        found = advantages(
            scores.values,
            prompts,
            per_prompt=self.config.advantage == "per_prompt",
            clip=self.config.advantage_clip,
            weights=scores.weights,
        )
        learnt = self.update(epoch, rollout, found)
        return EpochRow(
            epoch=epoch + 1,
            reward_mean=fmean(scores.valid()),
            reward_std=pstdev(scores.valid()),
            held_out_mean=fmean(held_out) if held_out else None,
            asked=scores.asked,
            masked=scores.masked,
            parts=scores.parts,
            surrogate_error=scores.surrogate_error,
            dead_groups=found.dead_groups,
            kl=kl_to_base(
                self.replay, rollout.drawn, self.steps, self._generator(epoch, "kl"), self.config.train_batch_size
            ),
            diversity=diversity(images, prompts),
            **learnt,
            **self.measure(images),
        )

    def roll_out(self, epoch: int) -> Rollout:
        """Draw the epoch's images: a seeded choice of prompts, each with its group of images."""
        config, order = self.config, self._generator(epoch, "prompts")
        windows = self.windows()
        chosen = int(torch.randint(len(windows), (), generator=self._generator(epoch, "window")))
        self.policy.schedule = self.schedule(windows[chosen])
        index = choose_prompts(len(self.prompts), config.prompts_per_epoch, config.images_per_prompt, order)
        prompts = [self.prompts[i] for i in index.tolist()]
        first_pass = chunks(config.images_per_epoch, config.updates_per_epoch, self._generator(epoch, "update 0"))
        indices, parts = local_indices(first_pass), []
        with progress.bar(epoch, config.epochs, "rollout", len(indices), "image") as bar:
            for start in range(0, len(indices), self.model.batch_size):
                some = indices[start : start + self.model.batch_size]
                seeds = [noise_seed(self.seed, "rollout", epoch, number) for number in some]
                parts.append(self.draw(index[some], seeds))
                self.scorer.batch_is_drawn(epoch, some, parts[-1].images, [prompts[number] for number in some])
                bar.update(len(some))
        drawn = joined(parts)
        return Rollout(indices, drawn, gather_images(indices, drawn.images, len(index)), prompts)

    def draw(self, prompt_index: torch.Tensor, seeds: list[int]) -> Drawn:
        """Draw a batch with the present adapter: an image for each of `prompt_index` [B], into `prompts`, and seed."""
        prompts, objective = self.replay.prompts, self.objective
        with torch.no_grad(), self.image_model.adapter.merged():
            if objective.needs_trajectories:
                return roll_out(self.policy, prompts, prompt_index, seeds, objective.needs_means)
            return draw_finals(replace(self.policy, schedule=self.schedule(None, 0.0)), prompts, prompt_index, seeds)

    def samples(self) -> dict[str, Image.Image]:
        """Prompt -> its image by the present adapter, of the first few prompts; always from the same noise."""
        shown, size = range(min(SAMPLES, len(self.prompts))), self.model.batch_size
        self.policy.schedule = self.schedule(None)  # a rollout chooses its own
        with self.as_saved():
            drawn = [
                self.draw(torch.tensor(some), [noise_seed(self.seed, "sample", number) for number in some])
                for some in (shown[start : start + size] for start in range(0, len(shown), size))
            ]
        return dict(zip(self.prompts, joined(drawn).images, strict=False))

    def preflight(self) -> dict[int, float]:
        """Replay a small rollout under the run's own configuration: every importance ratio must be 1.

        Returns for each step that is trained what rounding makes of its ratio; nothing if there is no policy gradient.
        Raises UserError if that is too much for the clip range, or a log-probability is not finite.
        """
        config = self.config
        count = min(self.model.batch_size, config.images_per_epoch)
        seeds = [noise_seed(self.seed, "preflight", number) for number in range(count)]
        groups = torch.arange(count) // config.images_per_prompt
        self.policy.schedule = self.schedule(None)
        drawn, steps = self.draw(groups % len(self.prompts), seeds), self.steps
        if not (isinstance(self.objective, PolicyGradient) and isinstance(drawn, Trajectories)):
            return {}
        return preflight.check(self.objective, drawn, steps, config.train_batch_size, config.clip_range)

    def update(self, epoch: int, rollout: Rollout, advantages: Advantages) -> dict[str, float]:
        """The epoch's optimiser steps (`Updater.update`)."""
        return self.updater.update(epoch, rollout, advantages, self.steps)

    def _generator(self, epoch: int, use: str) -> torch.Generator:
        """Another one for every use: a resumed run draws what the uninterrupted one would have drawn."""
        return generator(self.seed, "finetune", epoch, use)
