"""The number of active latents, by straight-through gradients to the thresholds."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("l0_penalty")
class L0(Objective):
    """`coefficient * mean_t ||z_t||_0`, or with a target `coefficient * (mean_t ||z_t||_0 / target - 1)^2`.

    Rajamanoharan et al. 2024 (arXiv 2407.14435), equation 9 and appendix F; reads `active` of the trace.

    Args:
        coefficient: weight.
        target: wanted mean number of active latents a token; 0 for the plain penalty.
    """

    name = "l0_penalty"  # "l0" is the measured number in the log
    options = ("l0", "target_l0")

    def __init__(self, coefficient: float = 0.01, target: float = 0.0):
        self.coefficient, self.target = coefficient, target

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> L0:
        return cls(config.option("l0", 0.01), config.option("target_l0", 0.0))

    def __call__(self, step: Step) -> Tensor:
        l0 = step.extras["active"].sum(-1).mean()
        return self.coefficient * ((l0 / self.target - 1).square() if self.target else l0)
