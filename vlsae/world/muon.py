"""Muon in float32: `torch.optim.Muon` orthogonalises in bfloat16, which processors without it emulate 20x slower."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate `U V^T` of each matrix `[n, rows, columns]` by the quintic Newton-Schulz iteration.

    Every iterate is a polynomial of the Gram matrix times the start, so the iteration runs on the small square Gram
    matrix alone: `P = aI + bG + cG^2`, `Q <- PQ`, `G <- PGP`; the long side is touched twice instead of ten times.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.transpose(1, 2)
    eye = torch.eye(gram.shape[1])
    total = eye
    for step in range(steps):
        polynomial = a * eye + b * gram + c * (gram @ gram)
        total = polynomial @ total
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    x = total @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonal update with the root mean square of Adam's (Jordan et al. 2024; Moonshot 2025).

    `m <- beta m + (1 - beta) g`, `W <- (1 - lr wd) W - 0.2 lr sqrt(max(rows, columns)) orth((1 - beta) g + beta m)`.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                directions = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    directions.append(p.grad.lerp(buffer, group["momentum"]))
                updates = orthogonalise(torch.stack(directions))
                scale = -0.2 * group["lr"] * max(shape) ** 0.5
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=scale)
