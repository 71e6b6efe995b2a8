"""The L1 penalty, fixed or steered to a wanted number of active latents."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("l1")
class L1(Objective):
    """`coefficient * mean_t sum_i |z_ti|`, after a linear rise of the coefficient over `warmup_steps`.

    With a `target_l0` the coefficient is multiplied by `(L0 / target) ** 0.01` a step (at most 3 % either way), so
    that it settles where L0 is the target.

    Args:
        coefficient: weight of the penalty, or where it starts.
        target_l0: wanted mean number of active latents a token; 0 leaves the coefficient alone.
        warmup_steps: over which the penalty rises from 0.
    """

    name = "l1"
    options = ("target_l0", "penalty_warmup_steps")

    def __init__(self, coefficient: float, target_l0: float = 0.0, warmup_steps: int = 0):
        self.coefficient, self.target_l0, self.warmup_steps, self.step = coefficient, target_l0, warmup_steps, 0

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> L1:
        return cls(config.l1, config.option("target_l0", 0.0), config.option("penalty_warmup_steps", 0))

    @property
    def state(self) -> dict[str, float]:
        return {"coefficient": self.coefficient, "step": self.step}

    @state.setter
    def state(self, values: dict[str, float]) -> None:
        self.coefficient, self.step = values["coefficient"], int(values["step"])

    def steer(self, z: Tensor) -> float:
        """The coefficient of this step, after a look at how many codes are active."""
        self.step += 1
        if self.target_l0:
            l0 = float((z != 0).sum(-1).to(torch.float32).mean())
            self.coefficient *= min(1.03, max(0.97, (max(l0, 1e-3) / self.target_l0) ** 0.01))
        return self.coefficient * min(1.0, self.step / self.warmup_steps if self.warmup_steps else 1.0)

    def __call__(self, step: Step) -> Tensor:
        return self.steer(step.z.detach()) * step.z.abs().sum(-1).mean()
