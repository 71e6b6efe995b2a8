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
