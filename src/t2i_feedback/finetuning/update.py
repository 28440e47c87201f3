"""An epoch's optimiser steps: losses of transitions, their gradients accumulated and averaged over all processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from t2i_feedback.finetuning import progress
from t2i_feedback.finetuning.advantages import Advantages
from t2i_feedback.finetuning.objective import Loss, Objective
from t2i_feedback.finetuning.replay import Replay, minibatches
from t2i_feedback.finetuning.rollout import Drawn, Rollout, chunks
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.seeds import generator


@dataclass
class Updater:
    """Changes the adapter's `parameters` by what the `objective` says of transitions."""

    replay: Replay
    objective: Objective
    parameters: Sequence[torch.nn.Parameter]
    optimiser: torch.optim.Optimizer
    config: Finetune
    seed: int
    averages: Sequence[torch.Tensor] = ()  # of the parameters, by `finetune.ema`; empty: none

    def update(self, epoch: int, rollout: Rollout, advantages: Advantages, steps: torch.Tensor) -> dict[str, float]:
        """Take the epoch's optimiser steps on the images that have an advantage; `advantages` are of all N images.

        `steps` are the indices of the denoising steps that may be trained on.

        Returns what is logged: ratio_max (largest |ratio - 1|), clipped (share of ratios outside the clip range) and
        grad_norm (mean over the steps, before clipping). Raises UserError if a loss or a gradient is not finite.
        """
        config = self.config
        trained = max(1, round(len(steps) * config.timestep_share))
        place = {index: position for position, index in enumerate(rollout.indices)}
        own = Advantages(advantages.values[rollout.indices], advantages.dead_groups)
        ratio_max, clipped, seen, norms = 0.0, 0, 0, []
        self.objective.begin()
        total = config.inner_epochs * int(own.valid.sum()) * trained
        with progress.bar(epoch, config.epochs, "update", total, "transition") as bar:
            for inner in range(config.inner_epochs):
                order = generator(self.seed, "finetune", epoch, f"update {inner}")
                for chunk in chunks(config.images_per_epoch, config.updates_per_epoch, order):
                    some = steps[torch.randperm(len(steps), generator=order)[:trained]]
                    valid = chunk[advantages.valid[chunk]].tolist()
                    if not valid:
                        continue
                    mine = torch.tensor([place[index] for index in valid if index in place], dtype=torch.long)
                    far, outside = self.accumulate(epoch, rollout.drawn, own, mine, some, bar.update)
                    ratio_max, clipped, seen = max(ratio_max, far), clipped + outside, seen + len(mine) * trained
                    norms.append(self.step(epoch, len(valid) * trained))
        found = torch.zeros(2 + distributed.world_size(), dtype=torch.float64)
        found[0], found[1], found[2 + distributed.rank()] = clipped, seen, ratio_max
        distributed.all_reduce(found)
        return {
            "ratio_max": float(found[2:].max()),
            "clipped": float(found[0] / found[1].clamp(min=1)),
            "grad_norm": fmean(norms) if norms else 0.0,
        }

    def accumulate(
        self,
        epoch: int,
        drawn: Drawn,
        advantages: Advantages,
        images: torch.Tensor,
        steps: torch.Tensor,
        on_minibatch: Callable[[int], object] = lambda count: None,
    ) -> tuple[float, int]:
        """Add the gradient of the loss's sum over the transitions of `images` [P] at `steps` [S] to the parameters'.

        `images` point into `drawn` and the advantages; `on_minibatch` is told how many transitions are done.
        Returns the largest |ratio - 1|, and how many ratios are outside the clip range. Raises UserError if a loss is
        not finite.
        """
        ratio_max, clipped = 0.0, 0
        self.objective.before_step(drawn, images, steps)
        with self.replay.policy.model.adapter.merged():
            for image, step in minibatches(images, steps, self.config.train_batch_size):
                loss = self.loss(drawn, advantages, image, step)
                if not loss.value.isfinite():
                    raise UserError(
                        f"epoch {epoch + 1}: the loss is {loss.value.item()}; the last good checkpoint is kept"
                    )
                (loss.value * len(image)).backward()  # a sum: a mean's would be too small for float16
                ratio_max = max(ratio_max, float((loss.ratio - 1).abs().max()))
                clipped += int(loss.clipped.sum())
                on_minibatch(len(image))
        return ratio_max, clipped

    def loss(self, drawn: Drawn, advantages: Advantages, image: torch.Tensor, step: torch.Tensor) -> Loss:
        """The objective of the steps (image [B], step [B]) plus `kl_weight` times the KL to the base model."""
        advantage = advantages.values[image].to(self.replay.policy.model.device)
        found = self.objective.loss(drawn, advantage, image, step)
        if not self.config.kl_weight:
            return found
        distance = self.replay.kl(drawn, image, step, found.mean).mean()
        return found._replace(value=found.value + self.config.kl_weight * distance)

    def step(self, epoch: int, transitions: int) -> float:
        """One optimiser step on the mean gradient over `transitions` of all processes; its norm before clipping.

        Raises UserError if the gradient is not finite.
        """
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]  # None: had no transition
        gradient = distributed.all_reduce(torch.nn.utils.parameters_to_vector(own)) / transitions
        for parameter, part in zip(self.parameters, gradient.split([p.numel() for p in own]), strict=True):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not norm.isfinite():
            raise UserError(f"epoch {epoch + 1}: a gradient is not finite; the last good checkpoint is kept")
        self.optimiser.step()
        for average, parameter in zip(self.averages, self.parameters, strict=bool(self.averages)):
            average.lerp_(parameter.detach(), 1 - self.config.ema)
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)
