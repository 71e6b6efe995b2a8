"""Non-negative least squares for many vectors at once."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def nonnegative_codes(target: Tensor, gram: Tensor, z: Tensor | None = None, sweeps: int = 1000) -> Tensor:
    """`argmin_{z >= 0} ||x - z D||^2` by cyclic coordinate descent, from `target = x D^T` and `gram = D D^T`.

    Each step solves one coordinate exactly, so the error never rises; it ends when no coordinate moves by more than
    1e-7 of the largest.

    Args:
        target: `[B, n]`; gram: `[n, n]`, or `[B, n, n]` where every vector has atoms of its own.
        z: where to start, `[B, n]`; zeros where None.
        sweeps: at most.

    Returns:
        `[B, n]`.

    Example:
        >>> nonnegative_codes(torch.tensor([[2.0, -1.0]]), torch.eye(2)).tolist()
        [[2.0, 0.0]]
    """
    z = torch.zeros_like(target) if z is None else z.clone()
    gram = gram.expand(len(target), *gram.shape[-2:]) if gram.ndim == 2 else gram
    fitted = torch.einsum("bi,bij->bj", z, gram)
    for _ in range(sweeps):
        moved = 0.0
        for j in range(z.shape[1]):
            step = (target[:, j] - fitted[:, j]) / gram[:, j, j].clamp_min(1e-12)
            new = (z[:, j] + step).clamp_min(0.0) * (gram[:, j, j] > 0)
            change = new - z[:, j]
            z[:, j] = new
            fitted += change[:, None] * gram[:, j]
            moved = max(moved, float(change.abs().max())) if len(change) else 0.0
        if moved <= 1e-7 * max(1e-12, float(z.max()) if z.numel() else 0.0):
            break
    return z
