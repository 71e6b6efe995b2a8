"""Whether a shared latent is used by all models, and how much it carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Universality:
    """Use of shared latents by M models, in the order they were given.

    Attributes:
        entropy: `[n_latents]`, firing entropy FE: 0 for one model's latent, 1 for one that all use alike; NaN for silent.
        cofiring: `[M, n_latents]`, co-firing proportion CFP: share of a model's firings at which all fire; NaN where
            it never fires.
        fires: `[M, n_latents]`; cofires: `[n_latents]`; counts.
    """

    entropy: Tensor
    cofiring: Tensor
    fires: Tensor
    cofires: Tensor


def universality(z: Mapping[str, Tensor], threshold: float = 0.0) -> Universality:
    """Firing entropy and co-firing proportion of every latent.

    `FE_k = -(1 / log M) sum_i p_i log p_i` with `p_i = |F_i| / sum_j |F_j|`, `CFP_ik = |C_k| / |F_ik|` with
    `F_ik = {x: z_ik(x) > threshold}` and `C_k` their intersection (arXiv 2502.03714).

    Args:
        z: codes `[N, n_latents]` of the same tokens by model; bool says directly what fires.
        threshold: above which a latent fires; the released code takes .1.

    Returns:
        A `Universality`.

    Raises:
        ValueError: for fewer than two models, or other shapes.

    Example:
        >>> both = universality({"a": torch.tensor([[True], [True]]), "b": torch.tensor([[True], [False]])})
        >>> both.cofiring[:, 0].tolist()
        [0.5, 1.0]
    """
    shapes = {name: tuple(codes.shape) for name, codes in z.items()}
    if len(shapes) < 2 or len(set(shapes.values())) != 1:
        raise ValueError(f"Codes have shapes {shapes}; give [N, n_latents] of the same tokens for two models or more.")
    active = torch.stack([codes if codes.dtype == torch.bool else codes > threshold for codes in z.values()])
    fires, cofires = active.sum(1), active.all(0).sum(0)
    share = fires / fires.sum(0)  # NaN for a silent latent, which has no entropy
    entropy = -torch.special.xlogy(share, share).sum(0) / math.log(len(shapes))
    return Universality(entropy.abs(), cofires / fires, fires, cofires)  # abs: -0.0 is 0.0


def concept_energy(z: Tensor, atoms: Tensor) -> Tensor:
    """How much of the mean activation a latent carries, `||E[z_k] D_k||^2` (arXiv 2502.03714).

    Args:
        z: codes `[N, n_latents]`.
        atoms: `[n_latents, d]`.

    Returns:
        `[n_latents]`.

    Example:
        >>> concept_energy(torch.tensor([[2.0], [0.0]]), torch.tensor([[3.0, 4.0]])).tolist()
        [25.0]
    """
    return (z.mean(0)[:, None] * atoms).square().sum(1)


def energy_cofiring(energy: Tensor, cofires: Tensor, least: int = 1) -> float:
    """Whether concepts that all models share carry more: the correlation of `log energy_k` and `log |C_k|`.

    Args:
        energy: `[n_latents]`, of one model (`concept_energy`).
        cofires: `[n_latents]`, how often all models fire together (`Universality.cofires`).
        least: co-firings that a latent must have to be counted; the paper reports all, and those above 1,000.

    Returns:
        Pearson's r in logarithms (arXiv 2502.03714), over latents that have energy and co-fire; NaN for fewer than
        three of them, or where one of the two is the same for all.

    Raises:
        ValueError: for unequal shapes, or `least` below 1.

    Example:
        >>> cofires = torch.tensor([1, 10, 100, 0])
        >>> round(energy_cofiring(3.0 * cofires**2, cofires), 6)
        1.0
    """
    if energy.ndim != 1 or energy.shape != cofires.shape or least < 1:
        raise ValueError(
            f"Energy has shape {tuple(energy.shape)}, cofires {tuple(cofires.shape)}, least={least}; give one number a "
            "latent each, and count latents that co-fire once or more."
        )
    kept = (energy > 0) & (cofires >= least)
    if kept.sum() < 3:
        return math.nan
    return float(torch.corrcoef(torch.stack([energy[kept].double().log(), cofires[kept].double().log()]))[0, 1])
