"""What an objective is: a loss of what was drawn, and what it needs of the drawing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch

from t2i_feedback.finetuning.replay import Replay
from t2i_feedback.finetuning.rollout import Drawn, Trajectories
from t2i_feedback.finetuning.section import Finetune


class Loss(NamedTuple):
    """Of B steps of images."""

    value: torch.Tensor  # scalar, the mean, with a graph
    mean: torch.Tensor  # [B, ...] of the transitions under the present policy, with a graph
    ratio: torch.Tensor  # [B] importance ratios; 1 where the objective has none
    clipped: torch.Tensor  # [B] bool: the ratio is outside the clip range


class Objective(ABC):
    """Of one run. Below `image` [B] and `step` [B] name B steps: indices of images of `drawn`, and of steps."""

    needs_trajectories: ClassVar[bool]  # True: `Trajectories`, with noise; False: `Finals`, of rollouts without noise
    needs_means: ClassVar[bool] = False  # trajectories keep the means of their steps as well
    further_passes: ClassVar[int] = 0  # of the network at a step that is trained on, without a gradient: for estimates

    def __init__(self, replay: Replay, parameters: Sequence[torch.nn.Parameter], config: Finetune):
        self.replay, self.parameters, self.config = replay, parameters, config

    def begin(self) -> None:  # noqa: B027  most have nothing to do
        """An epoch's updates begin: the present adapter is the one that drew its images."""

    def before_step(self, drawn: Drawn, images: torch.Tensor, steps: torch.Tensor) -> None:  # noqa: B027
        """An optimiser step on `images` [P] at `steps` [S] is about to begin."""

    @abstractmethod
    def loss(self, drawn: Drawn, advantage: torch.Tensor, image: torch.Tensor, step: torch.Tensor) -> Loss:
        """What is minimised; `advantage` [B] is that of each step's image, on the policy's device."""


class PolicyGradient(Objective):
    """PPO's clipped objective of importance ratios (Schulman et al., *Proximal Policy Optimization*, 2017, eq. 7)."""

    needs_trajectories = True

    @abstractmethod
    def ratio(self, drawn: Trajectories, image: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Importance ratios [B] and means [B, ...] of the transitions; 1 before anything was learnt."""

    def weight(self, step: torch.Tensor) -> torch.Tensor | float:
        """Of each transition's loss [B]."""
        return 1.0

    def loss(self, drawn: Drawn, advantage: torch.Tensor, image: torch.Tensor, step: torch.Tensor) -> Loss:
        assert isinstance(drawn, Trajectories)
        clip = self.config.clip_range
        ratio, mean = self.ratio(drawn, image, step)
        gain = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        seen = ratio.detach()
        return Loss(-(gain * self.weight(step)).mean(), mean, seen, (seen - 1).abs() > clip)
