"""The L1 penalty, fixed or steered to a wanted number of active latents."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("l1")
class L1(Objective):
    """`coefficient * mean_t sum_i |z_ti|`, after a linear rise of the coefficient over `warmup_steps`.

    With a `target_l0` the coefficient is multiplied by `(L0 / target) ** 0.01` a step (at most 1 % either way), so
    that it settles where L0 is the target.

    Args:
        coefficient: weight of the penalty, or where it starts.
        target_l0: wanted mean number of active latents a token; 0 leaves the coefficient alone.
        warmup_steps: over which the penalty rises from 0.
        relative: divide each token's sum by its norm, `mean_t sum_i |z_ti| / ||x_t||` (MSAE's released code).
    """

    name = "l1"
    options = ("target_l0", "penalty_warmup_steps", "l1_relative")

    def __init__(self, coefficient: float, target_l0: float = 0.0, warmup_steps: int = 0, relative: bool = False):
        self.coefficient, self.target_l0, self.warmup_steps = coefficient, target_l0, warmup_steps
        self.relative, self.step = relative, 0

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> L1:
        option = config.option
        return cls(config.l1, option("target_l0", 0.0), option("penalty_warmup_steps", 0), option("l1_relative", False))

    @property
    def state(self) -> dict[str, float]:
        return {"coefficient": self.coefficient, "step": self.step}

    @state.setter
    def state(self, values: dict[str, float]) -> None:
        self.coefficient, self.step = values["coefficient"], int(values["step"])

    def steer(self, z: Tensor) -> float:
        """The coefficient of this step, after a look at how many codes are active."""
        return self.steer_to(float((z != 0).sum(-1).to(torch.float32).mean()) if self.target_l0 else 0.0)

    def steer_to(self, l0: float) -> float:
        """The same, where the mean number of active codes is known."""
        self.step += 1
        if self.target_l0:
            self.coefficient *= min(1.01, max(0.99, (max(l0, 1e-3) / self.target_l0) ** 0.01))
        return self.coefficient * min(1.0, self.step / self.warmup_steps if self.warmup_steps else 1.0)

    def __call__(self, step: Step) -> Tensor:
        sums = step.z.abs().sum(-1)
        if self.relative:
            sums = sums / step.x.norm(dim=-1).clamp_min(1e-6)
        return self.steer(step.z.detach()) * sums.mean()
