"""Active prototypes stay near what they stand for."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("locality")
class Locality(Objective):
    """`locality * mean_t sum_i z_ti ||x_t - w_i||^2` over the prototypes `w_i` of SpaDE (arXiv 2503.01822).

    Since codes add up to 1, the sum is `||x||^2 - z pre / scale`. It bounds the error of a reconstruction from the
    prototypes from above.
    """

    name = "locality"
    options = ("locality",)

    def __init__(self, coefficient: float = 0.1):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Locality:
        return cls(config.option("locality", 0.1))

    def __call__(self, step: Step) -> Tensor:
        near = step.x.square().sum(-1) - (step.z * step.pre).sum(-1) / step.dictionary.scale
        return self.coefficient * near.mean()
