"""At which layers the latents of a multi-layer dictionary are active (arXiv 2409.04185)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def layer_distribution(z: Tensor) -> Tensor:
    """`P(L = l | J = j) = sum_t z_tlj / sum_{t,l'} z_tl'j` (arXiv 2409.04185).

    Args:
        z: codes `[N, L, n_latents]`, not negative.

    Returns:
        `[n_latents, L]`, float64; rows sum to 1, those of silent latents are NaN.

    Raises:
        ValueError: for another shape, or negative codes.

    Example:
        >>> layer_distribution(torch.tensor([[[1.0], [3.0]]])).tolist()
        [[0.25, 0.75]]
    """
    mass = _mass(z).sum(0)
    return (mass / mass.sum(0)).T


@dataclass(frozen=True)
class LayerVariance:
    """The variance of the layer, number 0 to L - 1, under the mass of codes, and its parts.

    Attributes:
        total: `Var(L)`.
        within_latent: `E_J[Var(L | J)]`; between_latents: `Var_J(E[L | J])`; their sum is `total`.
        within_latent_token: `E_{J,T}[Var(L | J, T)]`; between_tokens: `E_J[Var_T(E[L | J, T] | J)]`; their sum is
            `within_latent`.
    """

    total: float
    within_latent: float
    between_latents: float
    within_latent_token: float
    between_tokens: float

    @property
    def latent_ratio(self) -> float:
        """`E_J[Var(L | J)] / Var(L)`: 0 where every latent has its layer, 1 where all are spread alike."""
        return self.within_latent / self.total if self.total else float("nan")

    @property
    def token_ratio(self) -> float:
        """`E_{J,T}[Var(L | J, T)] / E_J[Var(L | J)]`: 0 where a latent is at one layer for any one token."""
        return self.within_latent_token / self.within_latent if self.within_latent else float("nan")


def layer_variance(z: Tensor) -> LayerVariance:
    """Decomposition of the layer's variance by the law of total variance.

    `P(J = j, T = t, L = l)` is `z_tlj` over the sum of all codes; the released script weighs by sums that are not
    normalised, and gives other numbers.

    Args:
        z: codes `[N, L, n_latents]`, not negative.

    Returns:
        A `LayerVariance`.

    Raises:
        ValueError: for another shape, negative codes, or codes that are all 0.

    Example:
        >>> layer_variance(torch.tensor([[[1.0], [1.0]]])).total
        0.25
    """
    p = _mass(z)
    if p.sum() == 0:
        raise ValueError(f"All codes {tuple(z.shape)} are 0, so that no layer is active; give codes of some activity.")
    p = p / p.sum()
    layer = torch.arange(z.shape[1], dtype=torch.double, device=z.device)
    centre = (p.sum((0, 2)) * layer).sum()
    latent, latent_mean = _means(p.sum(0, keepdim=True), layer)
    token, token_mean = _means(p, layer)
    spread = (layer[:, None] - latent_mean).square()
    return LayerVariance(
        total=float((p.sum((0, 2)) * (layer - centre).square()).sum()),
        within_latent=float((p.sum(0) * spread).sum()),
        between_latents=float((latent * (latent_mean - centre).square()).sum()),
        within_latent_token=float((p * (layer[:, None] - token_mean[:, None]).square()).sum()),
        between_tokens=float((token * (token_mean - latent_mean).square()).sum()),
    )


def _mass(z: Tensor) -> Tensor:
    if z.ndim != 3 or (z < 0).any():
        raise ValueError(f"Codes have shape {tuple(z.shape)} and minimum {z.min()}; give [N, L, n_latents], z >= 0.")
    return z.double()


def _means(p: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """Mass and mean layer of every latent of `p [T, L, n]`, `[T, n]` each; the mean is 0 without mass."""
    mass = p.sum(1)
    return mass, (p * layer[:, None]).sum(1) / mass.clamp_min(1e-300)
