"""Fine-tune the adapter of a diffusion model on rewards: roll out, judge, update; epoch by epoch.

Batch arithmetic of one epoch, with the default parameters:

    prompts_per_epoch 8 x images_per_prompt 8 = 64 pictures, 64 judge calls
    inner_epochs 1 x updates_per_epoch 4      = 4 optimiser steps on 16 pictures each
    16 pictures x (9 steps x timestep_share 1.0) = 144 transitions per optimiser step, up to train_batch_size at a time
    (10 steps, but the last has less noise than min_sigma)

Gradients are averaged over an optimiser step's transitions, so `train_batch_size` changes memory, speed and rounding,
and so does the number of processes: pictures are dealt to them so that each has an equal part in every optimiser step.
A picture's trajectory stays in the process that drew it; pictures, scores and gradients are combined.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from t2i_feedback.finetuning import checkpoint, optimiser
from t2i_feedback.finetuning.acquisition import Feedback, Reward, Scores
from t2i_feedback.finetuning.advantages import Advantages, advantages
from t2i_feedback.finetuning.objectives.ddpo import policy_loss
from t2i_feedback.finetuning.section import Finetune
from t2i_feedback.foundation import distributed
from t2i_feedback.foundation.errors import UserError
from t2i_feedback.foundation.rows import EpochRow, read_rows, write_rows
from t2i_feedback.image_models import base, texts, transitions
from t2i_feedback.image_models.merging import Adapter
from t2i_feedback.image_models.section import Model

Measure = Callable[[list[Image.Image]], dict[str, float]]

PREFLIGHT_TRANSITIONS = 64  # at least, in whole pictures
PREFLIGHT_SHARE = 0.1  # of the clip range: how far the ratio may be from 1 before anything was learnt
KL_TRANSITIONS = 64  # a sample of an epoch's transitions on which KL(policy || base) is logged
HISTORY = "history.jsonl"


class Trainer:
    """DDPO on one pipeline whose UNet carries a trainable adapter (`diffusion.load.add_adapter`).

    `feedback` scores the pictures as saved. `held_out`, if given, is a second reward that is only logged. `measure`
    returns photometric means by name. `folder` holds checkpoints and history.
    """

    def __init__(
        self,
        pipe,
        parameters: list[torch.nn.Parameter],
        prompts: Sequence[str],
        feedback: Feedback,
        measure: Measure,
        *,
        model: Model,
        finetune: Finetune,
        seed: int,
        folder: Path,
        held_out: Reward | None = None,
    ):
        self.pipe, self.parameters, self.prompts = pipe, parameters, list(prompts)
        self.feedback, self.measure = feedback, measure
        self.held_out = Feedback(held_out) if held_out else None
        self.model, self.config, self.seed, self.folder = model, finetune, seed, folder
        try:
            schedule = transitions.Schedule.of(pipe.scheduler, model.steps, finetune.eta)
        except ValueError as error:
            raise UserError(f"finetune.eta: {error}") from None
        chunk = finetune.pictures_per_epoch // finetune.updates_per_epoch
        if distributed.world_size() > chunk:
            raise UserError(
                f"finetune.updates_per_epoch: an update's {chunk} pictures cannot be divided among "
                f"{distributed.world_size()} processes; start fewer, or make fewer updates of more pictures"
            )
        self.steps = (schedule.sigma >= finetune.min_sigma).nonzero().flatten()  # those that are trained
        if not len(self.steps):
            raise UserError(
                f"finetune.min_sigma: no step has as much noise as {finetune.min_sigma:g}; the most is "
                f"{float(schedule.sigma.max()):.3g}"
            )
        self.device = pipe.device  # asked once: every time it is a walk over all modules
        self.embeddings = base.embed(pipe, self.prompts)
        null = base.embed(pipe, [model.negative_prompt])
        if finetune.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        self.policy = base.Policy(pipe.unet, schedule, model.guidance, null, texts.OncePerText(pipe.unet))
        self.adapter = Adapter(pipe.unet)
        self.optimiser = optimiser.make(finetune, parameters)

    def run(self, on_epoch: Callable[[EpochRow], None] = lambda row: None) -> list[EpochRow]:
        """Train to `epochs`, from the newest checkpoint if there is one. Returns the history of all epochs.

        Shorter than `epochs` when a bound was reached; `beyond_bounds` of its last row says which.
        """
        initial = self._copy()
        done, learnt, earlier = checkpoint.load_latest(self.folder, self.parameters, self.optimiser)
        self.feedback.load(learnt)
        earlier = earlier or initial  # the adapter before the last update
        history_path = self.folder / HISTORY
        history = read_rows(history_path, EpochRow)[:done] if history_path.exists() else []
        if len(history) < done:
            raise UserError(f"{history_path} has lost epochs that {self.folder} has checkpoints of; delete that folder")
        for row in history:
            on_epoch(row)
        self.preflight()
        for epoch in range(done, self.config.epochs):
            if history and self.beyond_bounds(history):
                break
            before = self._copy()
            history.append(self.epoch(epoch))
            if self.beyond_bounds(history):
                # an epoch's KL is of what its update made, its held-out score of what its pictures were drawn by
                for parameter, value in zip(
                    self.parameters, before if self._far(history[-1]) else earlier, strict=True
                ):
                    parameter.data.copy_(value)
            self._keep(epoch + 1, history, before)
            earlier = before
            on_epoch(history[-1])
        return history

    def _copy(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _keep(self, epochs: int, history: list[EpochRow], before: list[torch.Tensor]) -> None:
        """Write what a later run needs to go on from here. Raises UserError if the processes have drifted apart."""
        sums = torch.zeros(distributed.world_size(), dtype=torch.float64)
        sums[distributed.rank()] = sum(float(parameter.detach().cpu().double().sum()) for parameter in self.parameters)
        if (distributed.all_reduce(sums) != sums[0]).any():
            raise UserError(f"epoch {epochs}: the processes' adapters differ; the last good checkpoint is kept")
        if distributed.is_main():
            write_rows(self.folder / HISTORY, history)
            checkpoint.save(self.folder, epochs, self.parameters, self.optimiser, self.feedback.state(), before)
            checkpoint.keep_last(self.folder, self.config.keep_last)
        distributed.barrier()  # nobody goes on before it is written

    def beyond_bounds(self, history: Sequence[EpochRow]) -> str:
        """Why training ends with these epochs, and the last adapter within the bound; empty if it goes on."""
        first, last = history[0], history[-1]
        if self._far(last):
            return f"KL to the base model is {last.kl:.3g}, above finetune.max_kl {self.config.max_kl:g}"
        if self.config.max_held_out_drop is None or first.held_out_mean is None or last.held_out_mean is None:
            return ""
        drop = first.held_out_mean - last.held_out_mean
        if drop <= self.config.max_held_out_drop:
            return ""
        return (
            f"the held-out judge's score fell by {drop:.3g}, more than finetune.max_held_out_drop "
            f"{self.config.max_held_out_drop:g}"
        )

    def _far(self, row: EpochRow) -> bool:
        return self.config.max_kl is not None and row.kl > self.config.max_kl

    def epoch(self, epoch: int) -> EpochRow:
        """One rollout, its scores, and the updates. Raises UserError when training would go wrong."""
        numbers, rollout, images, prompts = self.roll_out(epoch)
        scores = self.feedback.scores(epoch, images, prompts)
        watched = self.held_out.scores(epoch, images, prompts).values if self.held_out else []
        valid = [float(score) for score in scores.values if score is not None]
        self._check(epoch, scores, valid)
        judged = advantages(
            scores.values,
            prompts,
            per_prompt=self.config.advantage == "per_prompt",
            clip=self.config.advantage_clip,
            weights=scores.weights,
        )
        learnt = self.update(epoch, numbers, rollout, judged)
        held_out = [float(score) for score in watched if score is not None]
        return EpochRow(
            epoch=epoch + 1,
            reward_mean=fmean(valid),
            reward_std=pstdev(valid),
            held_out_mean=fmean(held_out) if held_out else None,
            asked=scores.asked,
            masked=scores.masked,
            parts=scores.parts,
            surrogate_error=scores.surrogate_error,
            dead_groups=judged.dead_groups,
            kl=self.kl_to_base(epoch, rollout),
            diversity=diversity(images, prompts),
            **learnt,
            **self.measure(images),
        )

    def _check(self, epoch: int, scores: Scores, valid: list[float]) -> None:
        """Raises UserError when there is nothing to learn from the scores, or they are no numbers."""
        where = f"epoch {epoch + 1}"
        if not valid:
            raise UserError(
                f"{where}: none of the {len(scores.values)} pictures has a valid score{self.feedback.heard()}"
            )
        if scores.masked > self.config.max_invalid_fraction * scores.asked:
            raise UserError(
                f"{where}: {scores.masked} of the {scores.asked} pictures asked about have no valid score, more than "
                f"finetune.max_invalid_fraction = {self.config.max_invalid_fraction:g} allows{self.feedback.heard()}"
            )
        if epoch == 0 and min(valid) == max(valid):
            raise UserError(
                f"{where}: every picture got the reward {valid[0]:g} from {', '.join(self.feedback.rewards)}, so "
                "nothing can be learnt: let the judge read scores by probability, or choose another finetune.judge, "
                "preference or reward"
            )

    def dealt(self, epoch: int) -> list[int]:
        """The numbers of the epoch's pictures that this process draws and trains on: its equal part of every update."""
        chunks = self._chunks(self._dice(epoch, "update 0"))
        return sorted(number for chunk in chunks for number in distributed.shard(chunk.tolist()))

    def _chunks(self, dice: torch.Generator) -> tuple[torch.Tensor, ...]:
        """The epoch's picture numbers in a random order, cut into one chunk for each optimiser step of a pass."""
        return torch.randperm(self.config.pictures_per_epoch, generator=dice).chunk(self.config.updates_per_epoch)

    def roll_out(self, epoch: int) -> tuple[list[int], base.Trajectories, list[Image.Image], list[str]]:
        """Draw the epoch's pictures: a seeded choice of prompts, each with its group of pictures.

        Returns the numbers that this process drew and their trajectories, then all N pictures and their prompts.
        """
        chosen = torch.randperm(len(self.prompts), generator=self._dice(epoch, "prompts"))
        index = chosen[: self.config.prompts_per_epoch].repeat_interleave(self.config.images_per_prompt)
        prompts = [self.prompts[i] for i in index.tolist()]
        numbers, parts = self.dealt(epoch), []
        with self._bar(epoch, "rollout", len(numbers), "picture") as bar:
            for start in range(0, len(numbers), self.model.batch_size):
                some = numbers[start : start + self.model.batch_size]
                seeds = [base.noise_seed(self.seed, "rollout", epoch, number) for number in some]
                parts.append(self._draw(index[some], seeds))
                self.feedback.drawn(some, parts[-1].images, [prompts[number] for number in some])
                bar.update(len(some))
        rollout = base.Trajectories.joined(parts)
        return numbers, rollout, _everyones(numbers, rollout.images, len(index)), prompts

    def _draw(self, index: torch.Tensor, seeds: list[int]) -> base.Trajectories:
        with torch.no_grad(), self.adapter.merged():
            return base.roll_out(self.pipe, self.policy, self.embeddings, index, seeds, size=self.model.size)

    def preflight(self) -> float:
        """Replay a small rollout under the run's own configuration before any question is asked: every ratio must be 1.

        The replay builds graphs as an update does, since checkpointing of gradients changes what is computed.

        Returns the largest |ratio - 1|. Raises UserError if it is too large, or a log-probability is not finite.
        """
        count = min(self.model.batch_size, self.config.pictures_per_epoch)
        seeds = [base.noise_seed(self.seed, "preflight", number) for number in range(count)]
        groups = torch.arange(count) // self.config.images_per_prompt
        rollout = self._draw(groups % len(self.prompts), seeds)
        if not rollout.log_probs.isfinite().all():
            raise UserError(
                "preflight: a log-probability of the rollout is not finite; lower model.guidance or use float32"
            )
        steps = rollout.log_probs.shape[1]
        pictures = torch.arange(min(count, math.ceil(PREFLIGHT_TRANSITIONS / steps)))
        worst = 0.0
        with self.adapter.merged():
            for picture, step in _together(pictures, torch.arange(steps), self.config.train_batch_size):
                replayed = self._log_prob(rollout, picture, step)[0].detach()
                ratio = torch.exp(replayed - rollout.log_probs[picture, step].to(replayed.device))
                worst = max(worst, float((ratio - 1).abs().max()))
        limit = PREFLIGHT_SHARE * self.config.clip_range
        if not worst < limit:
            raise UserError(
                f"preflight: the importance ratio before any update is off by {worst:.1e}, more than {limit:.1e} = "
                f"{PREFLIGHT_SHARE} * finetune.clip_range: sampling and training disagree. Use model.dtype float32, or "
                "raise finetune.clip_range"
            )
        return worst

    def update(
        self, epoch: int, numbers: list[int], rollout: base.Trajectories, judged: Advantages
    ) -> dict[str, float]:
        """Take the epoch's optimiser steps; return what the log wants of them. Masked pictures are left out.

        `rollout` holds the pictures with these `numbers`, `judged` is of all pictures.
        """
        trained = max(1, round(len(self.steps) * self.config.timestep_share))
        place = {number: index for index, number in enumerate(numbers)}
        own = Advantages(judged.values[numbers], judged.valid[numbers], judged.dead_groups)
        ratio_max, clipped, seen, norms = 0.0, 0, 0, []
        total = self.config.inner_epochs * int(own.valid.sum()) * trained
        with self._bar(epoch, "update", total, "transition") as bar:
            for inner in range(self.config.inner_epochs):
                dice = self._dice(epoch, f"update {inner}")
                for chunk in self._chunks(dice):
                    chosen = self.steps[torch.randperm(len(self.steps), generator=dice)[:trained]]
                    valid = chunk[judged.valid[chunk]].tolist()
                    if not valid:
                        continue
                    mine = torch.tensor([place[number] for number in valid if number in place], dtype=torch.long)
                    far, outside = self._accumulate(epoch, rollout, own, mine, chosen, bar)
                    ratio_max, clipped, seen = max(ratio_max, far), clipped + outside, seen + len(mine) * trained
                    norms.append(self._step(epoch, len(valid) * trained))
        found = torch.zeros(2 + distributed.world_size(), dtype=torch.float64)
        found[0], found[1], found[2 + distributed.rank()] = clipped, seen, ratio_max
        distributed.all_reduce(found)
        return {
            "ratio_max": float(found[2:].max()),
            "clipped": float(found[0] / found[1].clamp(min=1)),
            "grad_norm": fmean(norms) if norms else 0.0,
        }

    def _accumulate(
        self,
        epoch: int,
        rollout: base.Trajectories,
        judged: Advantages,
        pictures: torch.Tensor,
        steps: torch.Tensor,
        bar: tqdm,
    ) -> tuple[float, int]:
        """Add the gradient of the loss's sum over these pictures' transitions at these steps to the parameters'.

        Returns the largest |ratio - 1|, and how many ratios are outside the clip range.
        """
        ratio_max, clipped = 0.0, 0
        with self.adapter.merged():
            for picture, step in _together(pictures, steps, self.config.train_batch_size):
                loss, ratio, outside = self._loss(rollout, judged, picture, step)
                if not loss.isfinite():
                    raise UserError(f"epoch {epoch + 1}: the loss is {loss.item()}; the last good checkpoint is kept")
                (loss * len(ratio)).backward()  # a sum: a mean's would be too small for float16
                ratio_max = max(ratio_max, float((ratio - 1).abs().max()))
                clipped += int(outside.sum())
                bar.update(len(ratio))
        return ratio_max, clipped

    def _step(self, epoch: int, transitions: int) -> float:
        """One optimiser step on the mean gradient over `transitions` of all processes; its norm before clipping."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]  # None: had no transition
        gradient = distributed.all_reduce(torch.nn.utils.parameters_to_vector(own)) / transitions
        for parameter, part in zip(self.parameters, gradient.split([p.numel() for p in own]), strict=True):
            parameter.grad = part.view_as(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not norm.isfinite():
            raise UserError(f"epoch {epoch + 1}: a gradient is not finite; the last good checkpoint is kept")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def _loss(
        self, rollout: base.Trajectories, judged: Advantages, picture: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        log_prob, mean = self._log_prob(rollout, picture, step)
        old = rollout.log_probs[picture, step].to(log_prob.device)
        objective = policy_loss(log_prob, old, judged.values[picture].to(log_prob.device), self.config.clip_range)
        loss = objective.value
        if self.config.kl_weight:
            loss = loss + self.config.kl_weight * self._kl(rollout, picture, step, mean).mean()
        return loss, objective.ratio, objective.clipped

    def _log_prob(
        self, rollout: base.Trajectories, picture: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability [B] and mean of the transitions (picture [B], step [B]) under the present policy."""
        x_t = rollout.latents[picture, step].to(self.device)
        x_prev = rollout.latents[picture, step + 1].to(self.device)
        prompt_index = rollout.prompt_index[picture]
        mean = self.policy.mean(x_t, step, self.embeddings[prompt_index].to(self.device), prompt_index)
        return transitions.log_prob(self.policy.schedule, step, mean, x_prev), mean

    def _kl(
        self, rollout: base.Trajectories, picture: torch.Tensor, step: torch.Tensor, mean: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad(), self.adapter.base():
            base_mean = self._log_prob(rollout, picture, step)[1]
        return transitions.kl_divergence(self.policy.schedule, step, mean, base_mean)

    @torch.no_grad()
    def kl_to_base(self, epoch: int, rollout: base.Trajectories) -> float:
        """KL(policy || base) per latent dimension, on a sample of the rollout's transitions that can be trained on."""
        steps = len(self.steps)
        some = torch.randperm(len(rollout.log_probs) * steps, generator=self._dice(epoch, "kl"))
        some = some[: math.ceil(KL_TRANSITIONS / distributed.world_size())]
        picture, step = some // steps, self.steps[some % steps]
        found = self._kl(rollout, picture, step, self._log_prob(rollout, picture, step)[1])
        total = distributed.all_reduce(torch.tensor([float(found.sum()), float(len(found))], dtype=torch.float64))
        return float(total[0] / total[1])

    def _dice(self, epoch: int, use: str) -> torch.Generator:
        """A generator of its own for every use: a resumed run draws what the uninterrupted one would have."""
        return torch.Generator().manual_seed(base.noise_seed(self.seed, "finetune", epoch, use))

    def _bar(self, epoch: int, what: str, total: int, unit: str) -> tqdm:
        return tqdm(
            total=total,
            unit=unit,
            desc=f"epoch {epoch + 1}/{self.config.epochs} {what}",
            leave=False,
            mininterval=1,
            disable=not distributed.is_main(),
        )


def _together(pictures: torch.Tensor, steps: torch.Tensor, limit: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The transitions of these pictures at these steps, as many at a time as go through the network together.

    At most `limit` and at least nine tenths of it: those that leave the longest runs of one picture and thereby of one
    text, of which `diffusion.texts` makes use.
    """
    sizes = range(math.ceil(0.9 * limit), limit + 1)
    size = max(sizes, key=lambda size: (math.gcd(size, len(steps)), size))
    picture, step = pictures.repeat_interleave(len(steps)), steps.repeat(len(pictures))
    for start in range(0, len(picture), size):
        yield picture[start : start + size], step[start : start + size]


def _everyones(numbers: list[int], images: list[Image.Image], total: int) -> list[Image.Image]:
    """All `total` pictures of an epoch in their order, from those with `numbers` that each process drew."""
    if distributed.world_size() == 1:
        return [image for _, image in sorted(zip(numbers, images, strict=True), key=lambda pair: pair[0])]
    drawn = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    everyones = torch.zeros((total, *drawn.shape[1:]), dtype=torch.uint8)
    everyones[numbers] = drawn
    return [Image.fromarray(pixels) for pixels in distributed.all_reduce(everyones).numpy()]


def diversity(images: list[Image.Image], prompts: Sequence[str]) -> float:
    """Mean root-mean-square pixel difference (0..255) of pictures of the same prompt; falls when a model collapses."""
    groups: dict[str, list[np.ndarray]] = {}
    for image, prompt in zip(images, prompts, strict=True):
        groups.setdefault(prompt, []).append(np.asarray(image, dtype=np.float32))
    distances = [
        math.sqrt(float(np.square(a - b).mean()))
        for group in groups.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
    ]
    return fmean(distances) if distances else 0.0
