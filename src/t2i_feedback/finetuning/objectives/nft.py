"""DiffusionNFT: learn from images as they are, those that were liked and those that were not (Zheng et al.,
*DiffusionNFT: Online Diffusion Reinforcement with Forward Process*, 2025).

An image is noised again, to the noise of each step that is trained on. With c what the present policy makes of the
clean latents, c_old what the one that drew made of them, and x_0 the image's own:

    loss = (r |c+ - x_0|^2 / w+  +  (1 - r) |c- - x_0|^2 / w-) / b
    c+ = (1 - b) c_old + b c,    c- = (1 + b) c_old - b c

r is 1/2 for an advantage of 0 and 0 or 1 for one at `finetune.advantage_clip`; w is the mean of |c - x_0|, without a
gradient. The authors write it in velocities, of which c is a linear function, so that it holds for DDIM's models too.
There is no log-probability, so rollouts are drawn without noise, and none of their steps is kept. An image of little
weight (`finetune.surrogate_weight`) has an advantage near 0: it pulls to the policy that drew, and teaches nothing.
"""

import torch

from t2i_feedback.finetuning.objective import Loss, Objective
from t2i_feedback.finetuning.replay import minibatches
from t2i_feedback.finetuning.rollout import Drawn

PULL = 1.0  # b: of the present policy towards the one that drew
SMALLEST = 1e-5  # of w


class Nft(Objective):
    needs_trajectories = False
    further_passes = 1  # for c_old, but in an epoch's first optimiser step
    old: list[torch.Tensor]
    earlier: torch.Tensor | None  # [P, S, ...] c_old of an optimiser step's images; None: the present c is c_old
    rows: dict[int, int]  # image -> its row therein
    columns: dict[int, int]  # step -> its column

    def begin(self) -> None:
        self.old = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def before_step(self, drawn: Drawn, images: torch.Tensor, steps: torch.Tensor) -> None:
        self.earlier = None
        present = [parameter.data for parameter in self.parameters]
        if not len(images) or all(map(torch.equal, present, self.old)):
            return
        self.rows = {image: row for row, image in enumerate(images.tolist())}
        self.columns = {step: column for column, step in enumerate(steps.tolist())}
        try:
            self._put(self.old)
            with self.replay.policy.model.adapter.merged():
                found = [
                    self.replay.clean(drawn, image, step)[0]
                    for image, step in minibatches(images, steps, self.config.train_batch_size)
                ]
        finally:
            self._put(present)
        self.earlier = torch.cat(found).unflatten(0, (len(images), len(steps)))

    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data = value

    def _old(self, image: torch.Tensor, step: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """c_old of what `present` is c of."""
        if self.earlier is None:
            return present.detach()
        return self.earlier[[self.rows[i] for i in image.tolist()], [self.columns[i] for i in step.tolist()]]

    def loss(self, drawn: Drawn, advantage: torch.Tensor, image: torch.Tensor, step: torch.Tensor) -> Loss:
        clean, mean = self.replay.clean(drawn, image, step)
        old, target = self._old(image, step, clean), drawn.final(image).to(clean.device).float()
        liked = 0.5 + 0.5 * (advantage / self.config.advantage_clip).clamp(-1, 1)
        towards = _distance((1 - PULL) * old + PULL * clean, target)
        away = _distance((1 + PULL) * old - PULL * clean, target)
        value = (liked * towards + (1 - liked) * away).mean() / PULL
        return Loss(value, mean, torch.ones_like(liked), torch.zeros_like(liked, dtype=torch.bool))


def _distance(clean: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[B]: the mean square, over w."""
    difference = (clean - target).flatten(1)
    return difference.square().mean(1) / difference.detach().abs().mean(1).clamp(min=SMALLEST)


OBJECTIVE = Nft
