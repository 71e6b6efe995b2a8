"""Codes move to what they stand for."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("commitment")
class Commitment(Objective):
    """`commitment * mean_t ||xhat_t - sg(x_t)||^2`, with gradient to the codes alone (arXiv 2310.17230)."""

    name = "commitment"
    options = ("commitment",)

    def __init__(self, coefficient: float = 1.0):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Commitment:
        return cls(config.option("commitment", 1.0))

    def __call__(self, step: Step) -> Tensor:
        return self.coefficient * (step.xhat - step.x.detach()).square().sum(-1).mean()
