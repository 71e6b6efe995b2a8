"""The evidence lower bound of a variational dictionary."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.objectives.base import OBJECTIVES, Objective, Step


@OBJECTIVES.register("elbo")
class ELBO(Objective):
    """`||x - xhat||^2 / gamma + d log gamma + sum_j (sigma_j^2 + mu_j^2 - log sigma_j^2 - 1)`, mean over the batch.

    Twice the negative evidence lower bound with a learned variance `gamma` of the reconstruction, without the constant
    `d log 2 pi` (Lu et al. 2025, arXiv 2506.04859).
    """

    name = "elbo"

    def __call__(self, step: Step) -> Tensor:
        mu, variance, log_gamma = step.extras["mu"], step.extras["variance"], step.dictionary.log_gamma[0]
        error = (step.target - step.xhat).square().sum(-1).mean()
        divergence = (variance + mu.square() - variance.log() - 1).sum(-1).mean()
        return error * (-log_gamma).exp() + step.x.shape[1] * log_gamma + divergence
