"""Where training starts: the decoder bias, and the variance of the data."""

from __future__ import annotations

import torch
from torch import Tensor


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to `x [N, d]`, by Weiszfeld's iteration.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round().item()
        1.0
    """
    point = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-8)
        nearer = (weights[:, None] * x).sum(0) / weights.sum()
        if (nearer - point).norm() <= tolerance * (1 + point.norm()):
            return nearer
        point = nearer
    return point


def initial_bias(sample: Tensor, kind: str) -> Tensor:
    """`b_dec` before the first step: "geometric_median" or "mean" of a sample `[N, d]`, or 0 ("zeros", "none")."""
    if kind in ("zeros", "none"):
        return torch.zeros(sample.shape[1])
    return geometric_median(sample) if kind == "geometric_median" else sample.mean(0)


def total_variance(sample: Tensor) -> float:
    """`E||x - mean||^2`."""
    return float((sample - sample.mean(0)).square().sum(1).mean())
