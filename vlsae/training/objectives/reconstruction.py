"""Squared and absolute error."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("reconstruction")
class Reconstruction(Objective):
    """Squared error at one of four scales, or absolute error.

    sum: `mean_t sum_d (x - xhat)^2`; patchsae: `mean_{t,d} (x - xhat)^2 / ||x_t||_2`; variance:
    `mean_t sum_d (x - xhat)^2 / variance`, with the total variance of the data; normalised:
    `mean_t ||x_t - xhat_t||^2 / ||x_t||^2` (MSAE's released code); absolute: `mean_{t,d} |x - xhat|` (USAE's).

    Example:
        >>> import torch
        >>> Reconstruction("sum").error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 2.0]])).item()
        4.0
    """

    name = "reconstruction"

    def __init__(self, scale: str = "sum", variance: float = 1.0):
        self.scale, self.variance = scale, variance

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Reconstruction:
        return cls(config.loss_scale, start.variance)

    def error(self, x: Tensor, xhat: Tensor) -> Tensor:
        """The error of any reconstruction `xhat [B, d]` of `x [B, d]`, at this scale."""
        if self.scale == "absolute":
            return (x - xhat).abs().mean()
        squared = (x - xhat).square()
        if self.scale == "patchsae":
            return (squared / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)).mean()
        if self.scale == "normalised":
            return (squared.sum(-1) / x.square().sum(-1).clamp_min(1e-12)).mean()
        total = squared.sum(-1).mean()
        return total / self.variance if self.scale == "variance" else total

    def __call__(self, step: Step) -> Tensor:
        return self.error(step.target, step.xhat)
