"""Latents that were not chosen explain what is left."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("unselected")
class Unselected(Objective):
    """The stronger half of the latents that were not chosen, dead or alive, predicts the residual (USAE's released code).

    `coefficient * mean_{t,d} |r - ReLU(TopK_half(pre of inactive latents)) W_dec|` with `r = x - xhat`
    (arXiv 2502.03714, released code).

    Args:
        coefficient: weight of the term.
    """

    name = "unselected"
    options = ("unselected",)

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Unselected:
        return cls(config.option("unselected", 0.1))

    def __call__(self, step: Step) -> Tensor:
        inactive = torch.where(step.z == 0, torch.relu(step.pre), 0.0)
        values, at = inactive.topk(max(1, step.z.shape[1] // 2), dim=-1, sorted=False)
        codes = torch.zeros_like(inactive).scatter(-1, at, values)
        residual = step.target - step.xhat
        return self.coefficient * (residual - codes @ step.dictionary.W_dec).abs().mean()
