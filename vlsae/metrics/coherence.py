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


def coactive_babel(z: Tensor, atoms: Tensor) -> Tensor:
    """`max_{j in S} sum_{i in S, i != j} |cos(D_i, D_j)|` of each code's active set S, `[N]` (arXiv 2506.03093).

    How much the atoms that are used together overlap, while `babel` looks at any of them. 0 for sets of one or none.

    Args:
        z: codes `[N, n]`; atoms: `[n, d]`.
    """
    active = (z != 0).double()
    return (active * (active @ _overlaps(atoms))).amax(1)


def level_errors(found: Tensor, truth: Tensor, level: Tensor) -> tuple[float, float]:
    """Mean squared error of the cosines of found atoms, within levels and across them (arXiv 2506.03093).

    `mean (cos(F_i, F_j) - cos(T_i, T_j))^2` over pairs `i != j` of one level ("flat") and of two ("hierarchical").

    Args:
        found: `[n, d]`, matched with the true atoms row by row.
        truth: `[n, d']`, true atoms.
        level: int `[n]`.

    Raises:
        ValueError: for unequal numbers of atoms.
    """
    if not len(found) == len(truth) == len(level):
        raise ValueError(f"{len(found)} found atoms, {len(truth)} true ones, {len(level)} levels; match them first.")
    f, t = (F.normalize(atoms.detach().double(), dim=1) for atoms in (found, truth))
    error = (f @ f.T - t @ t.T).square()
    same = level[:, None] == level[None]
    return float(error[same & ~torch.eye(len(level), dtype=torch.bool)].mean()), float(error[~same].mean())
