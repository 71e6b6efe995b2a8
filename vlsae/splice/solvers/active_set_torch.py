"""The active-set method as batched tensor operations: for CUDA devices, and the same on a processor.

No Gram matrix: residuals of all unfinished samples are multiplied with the dictionary once a round, and their working
sets are fitted together by a masked Cholesky factorisation. The certificate is computed in double precision at the end.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS
from vlsae.splice.solvers.working_set import IDLE, PROGRESS

FIRST, MORE = 12, 8
ROUNDS = 400
STEPS = 400  # of a fit: each ends, or lets a concept go
BLOCK = 512
RIDGE = 1e-10  # relative; decides between dependent concepts


def _fit(A: Tensor, b: Tensor, w: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """Lawson and Hanson's inner loop for a batch: `A [n, m, m]`, `b`, feasible `w` and membership `on [n, m]`."""
    for _ in range(STEPS):
        masked = A * on[:, :, None] * on[:, None, :]
        masked.diagonal(dim1=1, dim2=2).add_(torch.where(on, RIDGE * A.diagonal(dim1=1, dim2=2), torch.ones_like(b)))
        x = torch.cholesky_solve((b * on)[:, :, None], torch.linalg.cholesky(masked))[:, :, 0] * on
        bad = on & (x <= 0)
        if not bool(bad.any()):
            return x, on
        ratio = torch.where(bad, w / (w - x).clamp_min(1e-300), torch.full_like(w, torch.inf))
        step = ratio.amin(1, keepdim=True)
        first = bad & (ratio <= step)
        step = torch.where(bad.any(1, keepdim=True), step.clamp(max=1.0), torch.ones_like(step))
        w = (w + step * (x - w)).clamp_min(0.0)
        on = on & ~first & ~(bad & (w <= 0))
        w = w * on
    return w, on


def _room(idx: Tensor, w: Tensor, on: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """More places, where some sample has fewer free ones than wanted."""
    missing = wanted - int((~on).sum(1).min())
    if missing <= 0:
        return idx, w, on
    pad = (0, max(missing, on.shape[1] // 2))
    return tuple(torch.nn.functional.pad(t, pad) for t in (idx, w, on))


def _strongest(corr: Tensor, idx: Tensor, on: Tensor, take: int) -> tuple[Tensor, Tensor]:
    """Columns with the largest correlations outside the working sets, `[n, take]`; and which of them are outside."""
    inside = torch.where(on, idx, idx.gather(1, on.int().argmax(1, keepdim=True)))
    some = on.any(1, keepdim=True)
    corr.scatter_(1, inside, torch.where(some, -torch.inf, corr.gather(1, inside)).to(corr.dtype))
    values, columns = corr.topk(take, 1)
    return columns, values > -torch.inf


def _block(Z: Tensor, C: Tensor, lam: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Concepts and weights of some samples, `[n, m]` each; places with weight zero are empty."""
    n, exact = len(Z), torch.float64
    idx = torch.zeros(n, 4 * FIRST, dtype=torch.long, device=Z.device)
    w, on = torch.zeros_like(idx, dtype=exact), torch.zeros_like(idx, dtype=torch.bool)
    alive, r = torch.arange(n, device=Z.device), Z.double()
    squared = Z.double().square().sum(1)
    slack, best, idle = tol * squared, torch.full_like(squared, torch.inf), torch.zeros_like(alive)
    for number in range(ROUNDS):
        take = min(FIRST if number == 0 else max(MORE, int(on.sum(1).max()) // 8), len(C))
        column, outside = _strongest(r.to(Z.dtype) @ C.T, idx[alive], on[alive], take)
        exact_corr = torch.einsum("ntd,nd->nt", C[column].double(), r)
        allowed = torch.minimum(slack[alive] / (8 * w[alive].sum(1)), 1e-4 * lam[alive])
        violated = outside & (exact_corr - lam[alive, None] > allowed[:, None])
        value = r.square().sum(1) + 2 * lam[alive] * w[alive].sum(1)
        idle[alive] = torch.where(value < best[alive] - PROGRESS * squared[alive], 0, idle[alive] + 1)
        best[alive] = torch.minimum(value, best[alive])
        keep = violated.any(1) & (idle[alive] <= IDLE)
        if not bool(keep.any()):
            break
        alive, column, violated = alive[keep], column[keep], violated[keep]
        idx, w, on = _room(idx, w, on, take)
        places, weights, member = idx[alive], w[alive], on[alive]
        free = (~member).int().topk(take, 1).indices
        places = places.scatter(1, free, torch.where(violated, column, places.gather(1, free)))
        member = member.scatter(1, free, violated)
        atoms = C[places].double()
        b = torch.einsum("nmd,nd->nm", atoms, Z[alive].double()) - lam[alive, None]
        weights, member = _fit(atoms @ atoms.mT, b, weights, member)
        idx[alive], w[alive], on[alive] = places, weights, member
        r = Z[alive].double() - torch.einsum("nm,nmd->nd", weights, atoms)
    return idx, w


@SOLVERS.register("active_set_torch")
def active_set_torch(
    Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None, device="cpu"
):
    """Weights of all samples; the gap is left to the common certificate."""
    C = torch.as_tensor(dictionary.C).to(device)
    rows, columns, values = [], [], []
    for start in range(0, len(Z), BLOCK):
        part = slice(start, start + BLOCK)
        idx, w = _block(torch.as_tensor(Z[part]).to(device), C, torch.as_tensor(l1[part] / 2).to(device), tol)
        row, place = torch.nonzero(w.float() > 0, as_tuple=True)
        rows.append((row + start).cpu().numpy())
        columns.append(idx[row, place].cpu().numpy())
        values.append(w[row, place].float().cpu().numpy())
    triple = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    weights = scipy.sparse.csr_matrix(triple, (len(Z), len(C)), dtype=np.float32)
    weights.sort_indices()
    return weights, np.full(len(Z), np.nan)
