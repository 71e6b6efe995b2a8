"""Experts share the work."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("balance")
class Balance(Objective):
    """`balance d E sum_e f_e P_e`: share of vectors times mean probability of each of `E` experts (arXiv 2410.08201).

    1 at uniform shares and probabilities, before the weight; `E` where one expert has everything. The gradient goes
    through `P` alone. The factor `d` is there for squared errors summed over `d`, as in the released code, and left
    out at the other loss scales.
    """

    name = "balance"
    options = ("balance",)

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Balance:
        return cls(config.option("balance", 3.0) * (start.d if config.loss_scale == "sum" else 1))

    def __call__(self, step: Step) -> Tensor:
        share, probability = step.extras["share"], step.extras["probability"]
        return self.coefficient * len(share) * (share.detach() * probability).sum()
