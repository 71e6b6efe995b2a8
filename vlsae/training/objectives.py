"""What is minimised, as small objects: each takes a step's tensors and returns one named term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlsae.dictionaries.base import Dictionary


@dataclass
class Step:
    """The tensors of one step: `x [B, d]`, `pre` and `z [B, n_latents]`, `xhat [B, d]`, `dead [n_latents]` bool."""

    dictionary: Dictionary
    x: Tensor
    pre: Tensor
    z: Tensor
    xhat: Tensor
    dead: Tensor


class Reconstruction:
    """Squared error at one of three scales.

    sum: `mean_t sum_d (x - xhat)^2`; patchsae: `mean_{t,d} (x - xhat)^2 / ||x_t||_2`; variance:
    `mean_t sum_d (x - xhat)^2 / variance`, with the total variance of the data.
    """

    name = "reconstruction"

    def __init__(self, scale: str = "sum", variance: float = 1.0):
        self.scale, self.variance = scale, variance

    def __call__(self, step: Step) -> Tensor:
        squared = (step.x - step.xhat).square()
        if self.scale == "patchsae":
            return (squared / step.x.norm(dim=-1, keepdim=True).clamp_min(1e-6)).mean()
        total = squared.sum(-1).mean()
        return total / self.variance if self.scale == "variance" else total


class L1:
    """`coefficient * mean_t sum_i |z_ti|`."""

    name = "l1"

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    def __call__(self, step: Step) -> Tensor:
        return self.coefficient * step.z.abs().sum(-1).mean()


class AuxK:
    """Dead latents explain what is left (Gao et al. 2024, appendix A.2).

    `e = sg(x - xhat)`, `ehat = ReLU(TopK_aux(pre of dead latents)) W_dec` without decoder bias,
    `coefficient * ||e - ehat||^2 / ||e - mean e||^2`; 0 without dead latents.
    """

    name = "auxk"

    def __init__(self, k: int, coefficient: float):
        self.k, self.coefficient = k, coefficient

    def __call__(self, step: Step) -> Tensor:
        n_dead = int(step.dead.sum())
        if n_dead == 0:
            return step.x.new_zeros(())
        error = (step.x - step.xhat).detach()
        latents = step.dead.nonzero()[:, 0]
        values, at = step.pre[:, latents].topk(min(self.k, n_dead), dim=-1, sorted=False)
        codes = torch.zeros_like(step.pre[:, latents]).scatter(-1, at, torch.relu(values))
        left = (error - codes @ step.dictionary.W_dec[latents]).square().sum(-1).mean()
        spread = (error - error.mean(0)).square().sum(-1).mean()
        if spread == 0:  # one token, or nothing left to explain: no direction to go in
            return step.x.new_zeros(())
        return self.coefficient * left / spread


class GhostGradients:
    """Dead latents answer for the residual through an exponential (PatchSAE's released code).

    `g = exp(pre_dead) W_dec_dead`, scaled to half the residual's norm; `(g - sg(r))^2 / ||r||`, each term weighted to
    the size of the reconstruction error. The exponent is capped at 20, where the original overflows.
    """

    name = "ghost"

    def __call__(self, step: Step) -> Tensor:
        if not step.dead.any():
            return step.x.new_zeros(())
        residual = (step.x - step.xhat).detach()
        norm = residual.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        ghost = step.pre[:, step.dead].clamp(max=20).exp() @ step.dictionary.W_dec[step.dead]
        ghost = ghost * (norm / (1e-6 + 2 * ghost.norm(dim=-1, keepdim=True))).detach()
        loss = (ghost - residual).square() / norm
        error = residual.square() / step.x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return (loss * (error / (loss + 1e-6)).detach()).mean()


def explained_variance(x: Tensor, xhat: Tensor) -> Tensor:
    """Centred share of the variance of a batch that is explained, `1 - sum||x - xhat||^2 / sum||x - mean||^2`."""
    return 1 - F.mse_loss(xhat, x, reduction="sum") / (x - x.mean(0)).square().sum()
