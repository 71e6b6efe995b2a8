"""Dead latents that speak: AuxK."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


def auxiliary_k(d: int) -> int:
    """The power of two nearest to d/2."""
    return max(1, 2 ** round(torch.tensor(d / 2).log2().item()))


@OBJECTIVES.register("auxk")
class AuxK(Objective):
    """Dead latents explain what is left (Gao et al. 2024, appendix A.2).

    `e = sg(x - xhat)`, `ehat = ReLU(TopK_aux(pre of dead latents)) W_dec` without decoder bias,
    `coefficient * ||e - ehat||^2 / ||e - mean e||^2`; 0 without dead latents.
    """

    name = "auxk"

    def __init__(self, k: int, coefficient: float):
        self.k, self.coefficient = k, coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> AuxK:
        return cls(config.aux_k or auxiliary_k(start.d), config.aux_coefficient)

    def __call__(self, step: Step) -> Tensor:
        n_dead = int(step.dead.sum())
        if n_dead == 0:
            return step.x.new_zeros(())
        error = (step.target - step.xhat).detach()
        latents = step.dead.nonzero()[:, 0]
        values, at = step.pre[:, latents].topk(min(self.k, n_dead), dim=-1, sorted=False)
        codes = torch.zeros_like(step.pre[:, latents]).scatter(-1, at, torch.relu(values))
        left = (error - codes @ step.dictionary.W_dec[latents]).square().sum(-1).mean()
        spread = (error - error.mean(0)).square().sum(-1).mean()
        if spread == 0:  # one token, or nothing left to explain: no direction to go in
            return step.x.new_zeros(())
        return self.coefficient * left / spread
