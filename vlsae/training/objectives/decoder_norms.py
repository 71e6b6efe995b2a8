"""The penalty of crosscoders: codes weighted by how much their atoms write."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step


@OBJECTIVES.register("decoder_norms")
class DecoderNorms(Objective):
    """`coefficient * mean_t sum_i z_ti sum_l ||W_dec_l,i||` (Lindsey et al. 2024, "Sparse Crosscoders").

    Args:
        coefficient: weight of the penalty, `l1` of the recipe.
    """

    name = "decoder_norms"

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> DecoderNorms:
        return cls(config.l1)

    def __call__(self, step: Step) -> Tensor:
        return self.coefficient * (step.z.abs() @ step.dictionary.layer_norms().sum(1)).mean()
