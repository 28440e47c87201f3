"""Muon: momentum whose matrices are orthogonalised before every step (Jordan et al. 2024).

`torch.optim.Muon` iterates in bfloat16, which processors without bfloat16 units emulate slowly; this one stays in
float32. Small transformers learn in about half the steps that AdamW needs.
"""

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic coefficients, five iterations
ITERATIONS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, approximately, of [N, rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; scaled so that AdamW's learning rates fit (root mean square 0.2).

    A convolution counts as the matrix [outputs, inputs x kernel].
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                rate = group["lr"] * 0.2 * max(updates[0].shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(shape), alpha=-rate)


def make_optimisers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer's layers, AdamW for everything else that is trained."""
    inner, outer = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and "layers." in name and "relative_position" not in name
            (inner if matrix else outer).append(parameter)
    return [Muon(inner, lr=rate), torch.optim.AdamW(outer, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))]
