"""The two sides of a pair fire the same latents alike."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.config import TrainConfig
from vlsae.training.objectives.base import OBJECTIVES, Objective, Start, Step
from vlsae.training.objectives.cross_reconstruction import require_pairs


@OBJECTIVES.register("matched_codes")
class MatchedCodes(Objective):
    """`matched E sum_i (a_v,i - a_t,i)^2` over the latents active on either side of a pair, `a` before TopK.

    Taken before TopK, since a latent that is active on one side alone has no gradient on the other. With a distance
    encoder it asks for concept directions orthogonal to what separates the two sides, `w_i . (x^_v - x^_t) = 0`.
    """

    name = "matched_codes"
    options = ("matched",)

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    @classmethod
    def make(cls, config: TrainConfig, start: Start) -> MatchedCodes:
        return cls(config.option("matched", 1.0))

    def __call__(self, step: Step) -> Tensor:
        require_pairs(step, self.name)
        (a_images, a_texts), (images, texts) = step.pre.chunk(2), step.z.chunk(2)
        either = (images != 0) | (texts != 0)
        return self.coefficient * ((a_images - a_texts).square() * either).sum(-1).mean()
