"""JumpReLU dictionaries (Rajamanoharan et al. 2024): every latent has its own learned threshold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlsae.dictionaries.base import DICTIONARIES, Dictionary, Trace


class Jump(torch.autograd.Function):
    """`pre * 1[pre > threshold]`, and for the threshold the gradient of its expectation under a rectangular kernel.

    `d z / d threshold = -(threshold / bandwidth) K((pre - threshold) / bandwidth)`, `K = 1` within a half and 0 beyond
    (equation 11 of the paper).
    """

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return gradient * (pre > threshold), (-(threshold / ctx.bandwidth) * near * gradient).sum(0), None


class Active(torch.autograd.Function):
    """`1[pre > threshold]`, with `-(1 / bandwidth) K((pre - threshold) / bandwidth)` for the threshold (equation 12)."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return torch.zeros_like(pre), -(near * gradient).sum(0) / ctx.bandwidth, None


@DICTIONARIES.register("jumprelu")
class JumpReLUDictionary(Dictionary):
    """`z = pre * 1[pre > threshold]` with `threshold >= 0`, learned by straight-through gradients (arXiv 2407.14435).

    Thresholds are linear, as they stand, in the dictionary's own precision: logarithms of small thresholds hardly move
    at the learning rates that suit the weights.

    Args:
        d: width of the activations.
        n_latents: number of atoms.
        bandwidth: of the kernel, in units of pre-activations; the paper's .001 is for activations with unit mean
            square a coordinate and hundreds of thousands of steps.
        start: first value of every threshold; not needed to load a trained dictionary.
        seed: of the initial weights.

    Raises:
        ValueError: for a bandwidth that is not positive, or a negative start.

    Example:
        >>> sae = JumpReLUDictionary(d=4, n_latents=8, start=0.5)
        >>> z = sae.encode(torch.randn(5, 4))
        >>> bool(((z == 0) | (z > 0.5)).all())
        True
    """

    family = "jumprelu"
    objectives = ("reconstruction", "l0_penalty")

    def __init__(self, d: int, n_latents: int, *, bandwidth: float = 0.1, start: float = 0.1, seed: int = 0):
        super().__init__(d, n_latents, seed=seed)
        if not bandwidth > 0 or start < 0:
            raise ValueError(f"bandwidth={bandwidth} must be positive and start={start} at least 0.")
        self.bandwidth = bandwidth
        self.threshold = nn.Parameter(torch.full((n_latents,), float(start)))

    @property
    def settings(self) -> dict[str, Any]:
        return {"bandwidth": self.bandwidth}

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre) * (pre > self.threshold)

    def trace(self, x: Tensor) -> Trace:
        pre = self.pre(x)
        positive = torch.relu(pre)
        z = Jump.apply(positive, self.threshold, self.bandwidth)
        extras = {"active": Active.apply(positive, self.threshold, self.bandwidth)}
        return Trace(pre, z, self._decode(z), extras)

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        super().fold_scale(scale)
        self.threshold.div_(scale)
