"""Dead latents that speak through an exponential: ghost gradients."""

from __future__ import annotations

from torch import Tensor

from vlsae.training.objectives.base import OBJECTIVES, Objective, Step


@OBJECTIVES.register("ghost")
class GhostGradients(Objective):
    """Dead latents answer for the residual through an exponential (PatchSAE's released code).

    `g = exp(pre_dead) W_dec_dead`, scaled to half the residual's norm; `(g - sg(r))^2 / ||r||`, each term weighted to
    the size of the reconstruction error. The exponent is capped at 20, where the original overflows.
    """

    name = "ghost"

    def __call__(self, step: Step) -> Tensor:
        if not step.dead.any():
            return step.x.new_zeros(())
        residual = (step.target - step.xhat).detach()
        norm = residual.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        ghost = step.pre[:, step.dead].clamp(max=20).exp() @ step.dictionary.W_dec[step.dead]
        ghost = ghost * (norm / (1e-6 + 2 * ghost.norm(dim=-1, keepdim=True))).detach()
        loss = (ghost - residual).square() / norm
        error = residual.square() / step.x.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return (loss * (error / (loss + 1e-6)).detach()).mean()
