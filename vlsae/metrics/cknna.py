"""Whether two sets of vectors of the same things have the same neighbourhoods."""

from __future__ import annotations

import torch
from torch import Tensor


def _unbiased_hsic(K: Tensor, L: Tensor) -> Tensor:
    """The unbiased estimate of the dependence of two kernels `[N, N]` (Song et al. 2012), times `N (N - 3)`."""
    n = len(K)
    K, L = K.clone().fill_diagonal_(0.0), L.clone().fill_diagonal_(0.0)
    return (K * L.T).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K.sum(0) @ L.sum(1)) / (n - 2)


def _neighbours(K: Tensor, k: int) -> Tensor:
    """`[N, N]` bool, the `k` nearest of each by inner product, without itself."""
    nearest = K.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
    return torch.zeros_like(K, dtype=torch.bool).scatter_(1, nearest, True)


@torch.no_grad()
def cknna(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment of `x [N, d]` and `y [N, e]` (Huh et al. 2024, arXiv 2405.07987).

    `HSIC(M K, M L) / sqrt(HSIC(M_x K, M_x K) HSIC(M_y L, M_y L))` of the kernels `K = x x^T` and `L = y y^T`, where a
    mask keeps pairs `(i, j)` with `j` among the `k` nearest of `i` in `x` (`M_x`), in `y` (`M_y`), in both (`M`), and
    HSIC is the unbiased estimate. MSAE (arXiv 2502.20578) compares embeddings with their reconstructions by it.

    Args:
        x, y: one row a thing, in the same order; give unit vectors, for neighbours are those of largest inner product.
        k: neighbours looked at.

    Returns:
        1 for equal vectors, or turned ones; below `k / N` for independent ones, whose neighbours coincide by chance.

    Raises:
        ValueError: for unequal numbers of rows, or fewer than 4, or a `k` they do not have.

    Example:
        >>> x = torch.randn(30, 4)
        >>> round(cknna(x, -x), 4)
        1.0
    """
    if len(x) != len(y) or len(x) < 4 or not 1 <= k < len(x):
        raise ValueError(f"{len(x)} and {len(y)} vectors with k={k}: give as many of both, at least 4, and k below it.")
    K, L = (values.double() @ values.double().T for values in (x, y))
    of_x, of_y = _neighbours(K, k), _neighbours(L, k)
    both = of_x & of_y
    own = _unbiased_hsic(K * of_x, K * of_x) * _unbiased_hsic(L * of_y, L * of_y)
    return float(_unbiased_hsic(K * both, L * both) / own.clamp_min(1e-300).sqrt())
