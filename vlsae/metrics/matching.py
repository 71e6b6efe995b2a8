"""How alike two dictionaries are: best partners, and the best one-to-one matching."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Matching:
    """A one-to-one matching of rows of A with rows of B.

    Attributes:
        rows, partners: numbers of the matched rows of A and of B, parallel.
        scores: their similarities, parallel.
    """

    rows: np.ndarray
    partners: np.ndarray
    scores: np.ndarray

    @property
    def mean(self) -> float:
        """The mean similarity of the matched pairs."""
        return float(self.scores.mean())


def _match(similarity: np.ndarray) -> Matching:
    rows, partners = linear_sum_assignment(-similarity)
    return Matching(rows, partners, similarity[rows, partners])


def cosines(A: Tensor, B: Tensor) -> Tensor:
    """Cosines of all rows of `A [n, d]` and `B [m, d]`, `[n, m]`."""
    if A.shape[1] != B.shape[1]:
        raise ValueError(f"Atoms of width {A.shape[1]} and {B.shape[1]} cannot be compared; give two of one site.")
    return F.normalize(A.detach().float(), dim=1) @ F.normalize(B.detach().float(), dim=1).T


def max_cosine(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The best cosine of every row of `A [n, d]` among `B [m, d]`, and whose: `[n]` and `[n]`.

    Example:
        >>> import torch
        >>> max_cosine(torch.eye(2), torch.tensor([[0.0, 2.0]]))[0].tolist()
        [0.0, 1.0]
    """
    best = cosines(A, B).max(dim=1)
    return best.values, best.indices


def mmcs(A: Tensor, B: Tensor) -> float:
    """`mean_i max_j cos(A_i, B_j)` (Sharkey et al. 2022): how well A's atoms occur in B; not symmetric."""
    return float(max_cosine(A, B)[0].mean())


def aligned_share(A: Tensor, B: Tensor, aligned: float = 0.9, unaligned: float = 0.3) -> tuple[float, float]:
    """Shares of A's rows with a best cosine in B above `aligned` and below `unaligned` (arXiv 2510.22332)."""
    best = max_cosine(A, B)[0]
    return float((best > aligned).float().mean()), float((best < unaligned).float().mean())


def stability(A: Tensor, B: Tensor, signed: bool = False) -> Matching:
    """The one-to-one matching of atoms of the largest mean cosine (arXiv 2502.12892: "stability").

    Args:
        A: `[n, d]`; B: `[m, d]`; where sizes differ, the smaller is matched completely.
        signed: match up to sign, by `|cos|`, for families with codes of both signs.

    Raises:
        ValueError: for unequal widths.

    Example:
        >>> import torch
        >>> A = torch.randn(6, 4)
        >>> round(stability(A, 3 * A.flip(0)).mean, 4)
        1.0
    """
    similarity = cosines(A, B).cpu().numpy()
    return _match(np.abs(similarity) if signed else similarity)


def correlations(z: Tensor, truth: Tensor) -> np.ndarray:
    """Correlations of all columns of `z [N, n]` with all of `truth [N, m]`, `[n, m]`; 0 where one never varies."""

    def standardised(values: Tensor) -> Tensor:
        centred = values.detach().double() - values.detach().double().mean(0)
        return centred / centred.norm(dim=0).clamp_min(1e-12)

    return (standardised(z).T @ standardised(truth)).cpu().numpy()


def mcc(z: Tensor, truth: Tensor) -> float:
    """Mean absolute correlation of codes `z [N, n]` with true ones `[N, m]` after the best one-to-one matching.

    Latents that never vary have correlation 0.
    """
    return _match(np.abs(correlations(z, truth))).mean


def best_partners(truth: Tensor, z: Tensor) -> Tensor:
    """The latent `[m]` of each true code `[N, m]`, one to one, of the largest mean correlation with codes `[N, n]`.

    Raises:
        ValueError: for fewer latents than true codes.

    Example:
        >>> import torch
        >>> best_partners(torch.eye(3), torch.eye(3)[:, [2, 0, 1]]).tolist()
        [1, 2, 0]
    """
    if z.shape[1] < truth.shape[1]:
        raise ValueError(f"{z.shape[1]} latents cannot each stand for one of {truth.shape[1]} true codes.")
    return torch.as_tensor(_match(correlations(truth, z)).partners)
