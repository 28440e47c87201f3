"""Fine-tune the adapter of a diffusion model on rewards: roll out, judge, update; epoch by epoch.

Batch arithmetic of one epoch, with the default parameters:

    prompts_per_epoch 8 x images_per_prompt 8 = 64 pictures, 64 judge calls
    inner_epochs 1 x updates_per_epoch 4      = 4 optimiser steps on 16 pictures each
    16 pictures x (10 steps x timestep_share 1.0) = 160 transitions per optimiser step, train_batch_size at a time

Gradients are averaged over an optimiser step's transitions, so `train_batch_size` changes memory and speed alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from t2i_feedback import records
from t2i_feedback.ddpo import checkpoint
from t2i_feedback.ddpo.advantages import Advantages, advantages
from t2i_feedback.ddpo.objective import policy_loss
from t2i_feedback.diffusion import ddim, sampling
from t2i_feedback.errors import UserError
from t2i_feedback.params import Finetune, Model

Reward = Callable[[list[Image.Image], list[str]], Sequence[float | None]]
Measure = Callable[[list[Image.Image]], dict[str, float]]

PREFLIGHT_TRANSITIONS = 64
PREFLIGHT_SHARE = 0.1  # of the clip range: how far the ratio may be from 1 before anything was learnt
KL_TRANSITIONS = 64  # a sample of an epoch's transitions on which KL(policy || base) is logged
HISTORY = "history.jsonl"


class Trainer:
    """DDPO on one pipeline whose UNet carries a trainable adapter (`diffusion.load.add_adapter`).

    `reward` is given the pictures as saved and their prompts; `None` masks a picture. `held_out`, if given, is a second
    reward that is only logged. `measure` returns photometric means by name. `folder` holds checkpoints and history.
    """

    def __init__(
        self,
        pipe,
        parameters: list[torch.nn.Parameter],
        prompts: Sequence[str],
        reward: Reward,
        measure: Measure,
        *,
        model: Model,
        finetune: Finetune,
        seed: int,
        folder: Path,
        held_out: Reward | None = None,
    ):
        self.pipe, self.parameters, self.prompts = pipe, parameters, list(prompts)
        self.reward, self.measure, self.held_out = reward, measure, held_out
        self.model, self.config, self.seed, self.folder = model, finetune, seed, folder
        try:
            schedule = ddim.Schedule.of(pipe.scheduler, model.steps, finetune.eta)
        except ValueError as error:
            raise UserError(f"finetune.eta: {error}") from None
        self.embeddings = sampling.embed(pipe, self.prompts)
        self.policy = sampling.Policy(pipe.unet, schedule, model.guidance, sampling.embed(pipe, [""]))
        self.optimiser = torch.optim.AdamW(
            parameters, lr=finetune.learning_rate, weight_decay=finetune.weight_decay, foreach=True
        )
        if finetune.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()

    def run(self, on_epoch: Callable[[records.EpochRow], None] = lambda row: None) -> list[records.EpochRow]:
        """Train to `epochs`, from the newest checkpoint if there is one. Returns the history of all epochs."""
        done = checkpoint.load_latest(self.folder, self.parameters, self.optimiser)
        history_path = self.folder / HISTORY
        history = records.read(history_path, records.EpochRow)[:done] if history_path.exists() else []
        if len(history) < done:
            raise UserError(f"{history_path} has lost epochs that {self.folder} has checkpoints of; delete that folder")
        records.write(history_path, history)
        for row in history:
            on_epoch(row)
        for epoch in range(done, self.config.epochs):
            row = self.epoch(epoch)
            history.append(row)
            records.write(history_path, history)
            checkpoint.save(self.folder, epoch + 1, self.parameters, self.optimiser)
            checkpoint.keep_last(self.folder, self.config.keep_last)
            on_epoch(row)
        return history

    def epoch(self, epoch: int) -> records.EpochRow:
        """One rollout, its rewards, and the updates. Raises UserError when training would go wrong."""
        started = time.monotonic()
        rollout, prompts = self.roll_out(epoch)
        rewards = self.reward(rollout.images, prompts)
        watched = self.held_out(rollout.images, prompts) if self.held_out else []
        judged = advantages(
            rewards, prompts, per_prompt=self.config.advantage == "per_prompt", clip=self.config.advantage_clip
        )
        if epoch == 0:
            self.preflight(rollout)
        learnt = self.update(epoch, rollout, judged)
        scores = [float(score) for score in rewards if score is not None]
        if not scores:
            raise UserError(f"epoch {epoch + 1}: the judge gave no valid score for any of the {len(rewards)} pictures")
        held_out = [float(score) for score in watched if score is not None]
        return records.EpochRow(
            epoch=epoch + 1,
            reward_mean=fmean(scores),
            reward_std=pstdev(scores),
            held_out_mean=fmean(held_out) if held_out else None,
            masked=len(rewards) - len(scores),
            dead_groups=judged.dead_groups,
            kl=self.kl_to_base(epoch, rollout),
            diversity=diversity(rollout.images, prompts),
            seconds=time.monotonic() - started,
            **learnt,
            **self.measure(rollout.images),
        )

    def roll_out(self, epoch: int) -> tuple[sampling.Trajectories, list[str]]:
        """Draw the epoch's pictures: a seeded choice of prompts, each with its group of pictures."""
        chosen = torch.randperm(len(self.prompts), generator=self._dice(epoch, "prompts"))
        index = chosen[: self.config.prompts_per_epoch].repeat_interleave(self.config.images_per_prompt)
        seeds = [sampling.noise_seed(self.seed, "rollout", epoch, number) for number in range(len(index))]
        with self._bar(epoch, "rollout", len(index), "picture") as bar:
            rollout = sampling.roll_out(
                self.pipe,
                self.policy,
                self.embeddings,
                index,
                seeds,
                size=self.model.size,
                batch_size=self.model.batch_size,
                progress=bar.update,
            )
        return rollout, [self.prompts[i] for i in index.tolist()]

    @torch.no_grad()
    def preflight(self, rollout: sampling.Trajectories) -> None:
        """Replay part of a rollout before any update: every ratio must be 1. Raises UserError if one is not."""
        if not rollout.log_probs.isfinite().all():
            raise UserError(
                "preflight: a log-probability of the rollout is not finite; lower model.guidance or use float32"
            )
        pictures, steps = rollout.log_probs.shape
        every = torch.randperm(pictures * steps, generator=self._dice(0, "preflight"))[:PREFLIGHT_TRANSITIONS]
        worst = 0.0
        for some in every.split(self.config.train_batch_size):
            picture, step = some // steps, some % steps
            replayed = self._log_prob(rollout, picture, step)[0]
            ratio = torch.exp(replayed - rollout.log_probs[picture, step].to(replayed.device))
            worst = max(worst, float((ratio - 1).abs().max()))
        limit = PREFLIGHT_SHARE * self.config.clip_range
        if not worst < limit:
            raise UserError(
                f"preflight: the importance ratio before any update is off by {worst:.1e}, more than {limit:.1e} = "
                f"{PREFLIGHT_SHARE} * finetune.clip_range: sampling and training disagree. Use model.dtype float32, or "
                "raise finetune.clip_range"
            )

    def update(self, epoch: int, rollout: sampling.Trajectories, judged: Advantages) -> dict[str, float]:
        """Take the epoch's optimiser steps; return what the log wants of them. Masked pictures are left out."""
        steps = rollout.log_probs.shape[1]
        trained = max(1, round(steps * self.config.timestep_share))
        ratio_max, clipped, seen, norms = 0.0, 0, 0, []
        total = self.config.inner_epochs * int(judged.valid.sum()) * trained
        with self._bar(epoch, "update", total, "transition") as bar:
            for inner in range(self.config.inner_epochs):
                dice = self._dice(epoch, f"update {inner}")
                shuffled = torch.randperm(len(rollout.images), generator=dice)
                for pictures in shuffled.chunk(self.config.updates_per_epoch):
                    pictures = pictures[judged.valid[pictures]]
                    chosen = torch.randperm(steps, generator=dice)[:trained]
                    picture, step = (grid.flatten() for grid in torch.meshgrid(pictures, chosen, indexing="ij"))
                    if not len(picture):
                        continue
                    for some in torch.arange(len(picture)).split(self.config.train_batch_size):
                        loss, ratio, outside = self._loss(rollout, judged, picture[some], step[some])
                        if not loss.isfinite():
                            raise UserError(
                                f"epoch {epoch + 1}: the loss is {loss.item()}; the last good checkpoint is kept"
                            )
                        (loss * len(some) / len(picture)).backward()
                        ratio_max = max(ratio_max, float((ratio - 1).abs().max()))
                        clipped += int(outside.sum())
                        seen += len(some)
                        bar.update(len(some))
                    norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
                    if not norm.isfinite():
                        raise UserError(
                            f"epoch {epoch + 1}: a gradient is not finite; the last good checkpoint is kept"
                        )
                    self.optimiser.step()
                    self.optimiser.zero_grad(set_to_none=True)
                    norms.append(float(norm))
        return {"ratio_max": ratio_max, "clipped": clipped / max(1, seen), "grad_norm": fmean(norms) if norms else 0.0}

    def _loss(
        self, rollout: sampling.Trajectories, judged: Advantages, picture: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        log_prob, mean = self._log_prob(rollout, picture, step)
        old = rollout.log_probs[picture, step].to(log_prob.device)
        objective = policy_loss(log_prob, old, judged.values[picture].to(log_prob.device), self.config.clip_range)
        loss = objective.value
        if self.config.kl_weight:
            loss = loss + self.config.kl_weight * self._kl(rollout, picture, step, mean).mean()
        return loss, objective.ratio, objective.clipped

    def _log_prob(
        self, rollout: sampling.Trajectories, picture: torch.Tensor, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability [B] and mean of the transitions (picture [B], step [B]) under the present policy."""
        device = self.pipe.device
        x_t = rollout.latents[picture, step].to(device)
        x_prev = rollout.latents[picture, step + 1].to(device)
        embeddings = self.embeddings[rollout.prompt_index[picture]].to(device)
        mean = self.policy.mean(x_t, step, embeddings)
        return ddim.log_prob(self.policy.schedule, step, mean, x_prev), mean

    def _kl(
        self, rollout: sampling.Trajectories, picture: torch.Tensor, step: torch.Tensor, mean: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            self.pipe.unet.disable_adapters()
            try:
                base_mean = self._log_prob(rollout, picture, step)[1]
            finally:
                self.pipe.unet.enable_adapters()
        return ddim.kl_divergence(self.policy.schedule, step, mean, base_mean)

    @torch.no_grad()
    def kl_to_base(self, epoch: int, rollout: sampling.Trajectories) -> float:
        """KL(policy || base) per latent dimension, on a sample of the rollout's transitions."""
        pictures, steps = rollout.log_probs.shape
        some = torch.randperm(pictures * steps, generator=self._dice(epoch, "kl"))[:KL_TRANSITIONS]
        picture, step = some // steps, some % steps
        return float(self._kl(rollout, picture, step, self._log_prob(rollout, picture, step)[1]).mean())

    def _dice(self, epoch: int, use: str) -> torch.Generator:
        """A generator of its own for every use: a resumed run draws what the uninterrupted one would have."""
        return torch.Generator().manual_seed(sampling.noise_seed(self.seed, "finetune", epoch, use))

    def _bar(self, epoch: int, what: str, total: int, unit: str) -> tqdm:
        return tqdm(
            total=total, unit=unit, desc=f"epoch {epoch + 1}/{self.config.epochs} {what}", leave=False, mininterval=1
        )


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
