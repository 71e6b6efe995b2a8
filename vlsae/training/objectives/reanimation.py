"""Dead latents that are pulled towards the data."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("reanimation")
class Reanimation(Objective):
    """`-coefficient * mean_t mean_i (dead_i * pre_ti)`: raises the pre-activations of dead latents until they fire.

    Unlike AuxK it also reaches latents whose pre-activations are negative everywhere (overcomplete's `reanim`).
    """

    name = "reanimation"
    options = ("reanimation",)

    def __init__(self, coefficient: float = 1e-3):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Reanimation:
        return cls(config.option("reanimation", 1e-3))

    def __call__(self, step: Step) -> Tensor:
        return -self.coefficient * (step.pre * step.dead).mean()
