"""Inputs that several models find most typical of one shared latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def maximise_activations(
    scores: Mapping[str, Callable[[Tensor], Tensor]],
    start: Tensor,
    *,
    penalty: float = 1e-2,
    steps: int = 200,
    lr: float = 0.05,
) -> dict[str, Tensor]:
    """Coordinated activation maximisation: for every model, pixels that maximise the same latent.

    `x_i* = argmax_x z_ik(x) - penalty ||x||^2` by Adam (arXiv 2502.03714, with this regulariser in place
    of phase-only MACO).

    Args:
        scores: by model, a differentiable function of pixels `[B, ...]` to the latent's value `[B]`, or its
            pre-activation, which has a gradient where the latent is silent.
        start: `[B, ...]`, where all models begin.
        penalty: weight of the regulariser.
        steps: of the optimiser.
        lr: its learning rate.

    Returns:
        Pixels by model, shaped like `start`.

    Raises:
        ValueError: for a score that is not `[B]` or has no gradient.

    Example:
        >>> best = maximise_activations({"a": lambda x: x.sum(1)}, torch.zeros(1, 2), penalty=0.5)
        >>> best["a"].round(decimals=2).tolist()
        [[1.0, 1.0]]
    """
    return {name: _maximise(name, score, start, penalty, steps, lr) for name, score in scores.items()}


def _maximise(name: str, score, start: Tensor, penalty: float, steps: int, lr: float) -> Tensor:
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        value = score(x)
        if value.shape != (len(x),) or not value.requires_grad:
            raise ValueError(
                f"The score of {name!r} has shape {tuple(value.shape)} for {len(x)} inputs, gradient: "
                f"{value.requires_grad}; give a differentiable function of pixels to [{len(x)}] values."
            )
        (x.grad,) = torch.autograd.grad(penalty * x.square().sum() - value.sum(), x)  # of pixels, not of the model
        optimizer.step()
    return x.detach()
