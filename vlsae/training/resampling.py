"""Dead latents that start again where the reconstruction is worst."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlsae.training.objectives import Step


@torch.no_grad()
def resample(step: Step, optimizer: torch.optim.Optimizer, seed: int) -> int:
    """Point every dead latent at the residual of a badly reconstructed token (Bricken et al. 2023, "Resampling").

    Tokens are drawn in proportion to the square of their squared error; a latent's atom becomes the unit residual,
    its encoder column the same direction at a fifth of the mean norm of the alive ones, its bias 0, and the optimiser
    forgets its moments.

    Args:
        step: tensors of the step just taken; `step.dead` says whom.
        optimizer: Adam or AdamW over the dictionary's parameters.
        seed: of the draw; another one each time.

    Returns:
        How many latents were resampled.

    Raises:
        ValueError: for a family without encoder columns and atoms of its own.
    """
    sae, dead = step.dictionary, step.dead.nonzero()[:, 0].cpu()
    parameters = dict(sae.named_parameters())
    if not {"W_enc", "W_dec"} <= set(parameters):
        raise ValueError(
            f"Latents of {sae.family!r} cannot be resampled: it has no W_enc and W_dec; use dead_policy reanimation."
        )
    error = (step.x - step.xhat).cpu()
    weight = error.double().square().sum(1).square()
    if len(dead) == 0 or not weight.sum() > 0:
        return 0
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(weight / weight.sum(), len(dead), replacement=True, generator=generator)
    directions = F.normalize(error[drawn], dim=1).to(sae.W_dec)
    alive = (~step.dead).nonzero()[:, 0]
    size = 0.2 * (sae.W_enc[:, alive].norm(dim=0).mean() if len(alive) else 1.0)
    dead = dead.to(sae.W_dec.device)
    sae.W_dec[dead] = directions
    sae.W_enc[:, dead] = size * directions.T
    if "b_enc" in parameters:
        sae.b_enc[dead] = 0
    _forget(optimizer, sae.W_dec, dead)
    _forget(optimizer, sae.W_enc, (slice(None), dead))
    if "b_enc" in parameters:
        _forget(optimizer, sae.b_enc, dead)
    return len(dead)


def _forget(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, at) -> None:
    for name, value in optimizer.state[parameter].items():
        if name != "step":
            value[at] = 0
