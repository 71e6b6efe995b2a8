"""Non-negative least squares for many vectors at once."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vlsae.threads import in_threads

ENOUGH = 1e-7  # of a row's largest code: where no coordinate moves by more, a row is done
LEAST = 1e-12  # what a squared norm is divided by at least, and the least size of a row's largest code


@njit(fastmath={"contract", "reassoc"}, error_model="numpy", nogil=True, cache=True)
def _descend(target, gram, z, sweeps, lo, hi):
    """Coordinate descent on rows `lo` to `hi` of `z`, each until it is done; double precision throughout."""
    n = z.shape[1]
    fitted = np.empty(n)
    for r in range(lo, hi):
        G, goal, code = gram[r % gram.shape[0]], target[r], z[r]  # one matrix for all rows, or one each
        fitted[:] = 0
        for j in range(n):
            if code[j] != 0:
                fitted += code[j] * G[j]
        for _ in range(sweeps):
            moved, top = 0.0, LEAST
            for j in range(n):
                new = max(code[j] + (goal[j] - fitted[j]) / max(G[j, j], LEAST), 0.0) if G[j, j] > 0 else 0.0
                change = new - code[j]
                if change != 0:  # most coordinates are 0 and stay there
                    code[j] = new
                    for i in range(n):
                        fitted[i] += change * G[j, i]
                moved, top = max(moved, abs(change)), max(top, new)
            if moved <= ENOUGH * top:
                break


@torch.no_grad()
def nonnegative_codes(target: Tensor, gram: Tensor, z: Tensor | None = None, sweeps: int = 1000) -> Tensor:
    """`argmin_{z >= 0} ||x - z D||^2` by cyclic coordinate descent, from `target = x D^T` and `gram = D D^T`.

    Each step solves one coordinate exactly, so the error never rises; a vector is done when no coordinate moves by
    more than 1e-7 of its largest, whatever the other vectors do. A compiled loop on the processor, in double precision.

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
    goal, G = (values.detach().cpu().double().contiguous().numpy() for values in (target, gram))
    found = torch.zeros(target.shape, dtype=torch.float64) if z is None else z.detach().cpu().double().clone()
    found = found.contiguous()
    in_threads(_descend, len(goal), goal, G.reshape(-1, *G.shape[-2:]), found.numpy(), sweeps)
    return found.to(target)
