"""How far the atoms of a dictionary are from orthogonal, and how many directions its codes use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _overlaps(atoms: Tensor) -> Tensor:
    unit = F.normalize(atoms.detach().double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(0.0).abs()


def coherence(atoms: Tensor) -> float:
    """`max_{i != j} |cos(D_i, D_j)|` of atoms `[n, d]`.

    Below `1 / (2 k - 1)` pursuit and lasso find every k-sparse code (Tropp 2004).

    Example:
        >>> coherence(torch.eye(3))
        0.0
    """
    return float(_overlaps(atoms).max())


def babel(atoms: Tensor, r: int) -> float:
    """`mu_1(r) = max_{|S| = r} max_{j not in S} sum_{i in S} |cos(D_i, D_j)|` of atoms `[n, d]` (Tropp 2004).

    Raises:
        ValueError: for an `r` outside 1 to `n - 1`.
    """
    if not 1 <= r < len(atoms):
        raise ValueError(f"r={r} must lie between 1 and the number of atoms less one, {len(atoms) - 1}.")
    return float(_overlaps(atoms).topk(r, dim=1).values.sum(1).max())


def effective_rank(z: Tensor) -> float:
    """`exp(entropy)` of the eigenvalues of `z^T z`, normalised to add up to 1, for codes or vectors `[N, n]`.

    Example:
        >>> round(effective_rank(torch.eye(5)), 4)
        5.0
    """
    energy = torch.linalg.svdvals(z.detach().double()).square()
    share = energy / energy.sum().clamp_min(1e-300)
    return float(torch.exp(torch.special.entr(share).sum()))


def modality_score(z_image: Tensor, z_text: Tensor) -> Tensor:
    """`image mean / (image mean + text mean)` of every latent, `[n]` (arXiv 2506.03093): 1 image only, 0 text only.

    Args:
        z_image, z_text: codes `[N, n]` and `[M, n]` of as many images as texts of the same things.

    Returns:
        NaN for latents that never fire.
    """
    image, text = z_image.abs().double().mean(0), z_text.abs().double().mean(0)
    return image / (image + text)
