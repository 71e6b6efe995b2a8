"""The two terms that train the gate of a gated dictionary."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Start, Step
from vlsae.training.objectives.l1 import L1
from vlsae.training.objectives.reconstruction import Reconstruction


@OBJECTIVES.register("gate")
class Gate(L1):
    """`coefficient * mean_t sum_i ReLU(gate) + error(x, ReLU(gate) sg(W_dec) + sg(b_dec))` (arXiv 2404.16014, eq. 8).

    The stopped decoder `sg` learns from the reconstruction alone. Warm-up and `target_l0` are those of `L1`.
    """

    name = "gate"

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> Gate:
        gate = super().make(config, start)
        gate.error = Reconstruction.make(config, start)
        return gate

    def __call__(self, step: Step) -> Tensor:
        sae, opened = step.dictionary, torch.relu(step.pre)
        frozen = opened @ sae.W_dec.detach() + sae.b_dec.detach()
        return self.steer(step.z.detach()) * opened.sum(-1).mean() + self.error.error(step.target, frozen)
