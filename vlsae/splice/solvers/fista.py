"""FISTA with restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015): batched tensors on any device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS

ITERATIONS = 20_000
CHECKED = 50  # iterations between two looks at the duality gap
BLOCK = 256  # samples at a time: three dense [BLOCK, K] tensors


def gap_of(Z: Tensor, C: Tensor, W: Tensor, lam: Tensor) -> Tensor:
    """Duality gap of dense weights, `[N]`."""
    r = Z - W @ C
    t = (lam / (r @ C.T).amax(1)).clamp(0, 1)
    t = torch.where(torch.isfinite(t) & (t > 0), t, torch.ones_like(t))
    return (1 + t * t) * r.square().sum(1) + 2 * lam * W.sum(1) - 2 * t * (Z * r).sum(1)


def _block(Z: Tensor, C: Tensor, lam: Tensor, step: float, tol: float, iterations: int) -> Tensor:
    W = Y = Z.new_zeros(len(Z), len(C))
    t = Z.new_ones(len(Z), 1)
    enough = 0.5 * tol * Z.square().sum(1).clamp_min(1e-30)
    for i in range(1, iterations + 1):
        new = torch.relu(Y - step * ((Y @ C - Z) @ C.T + lam[:, None]))
        worse = ((Y - new) * (new - W)).sum(1, keepdim=True) > 0  # momentum points uphill: start it anew
        t_new = torch.where(worse, torch.ones_like(t), (1 + (1 + 4 * t * t).sqrt()) / 2)
        Y = new + torch.where(worse, torch.zeros_like(t), (t - 1) / t_new) * (new - W)
        W, t = new, t_new
        if i % CHECKED == 0 and bool((gap_of(Z, C, W, lam) <= enough).all()):
            break
    return W


def on_device(dictionary: PreparedDictionary, device: str) -> Tensor:
    """The dictionary in double precision, in which a gap of 1e-6 can be reached; Apple's GPUs have only single."""
    single = torch.device(device).type == "mps"
    return torch.as_tensor(dictionary.C).to(device, torch.float32 if single else torch.float64)


def in_blocks(Z: np.ndarray, l1: np.ndarray, like: Tensor, block: Callable[[Tensor, Tensor], Tensor]):
    """Dense weights of `BLOCK` samples at a time, `block(z, lam)`, as CSR; gaps are left to the common certificate."""
    rows = []
    for start in range(0, len(Z), BLOCK):
        part = slice(start, start + BLOCK)
        W = block(torch.as_tensor(Z[part]).to(like), torch.as_tensor(l1[part] / 2).to(like))
        rows.append(scipy.sparse.csr_matrix(W.float().cpu().numpy()))
    return scipy.sparse.vstack(rows, "csr"), np.full(len(Z), np.nan)


@SOLVERS.register("fista")
def fista(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None, device="cpu"):
    """Accelerated proximal gradient with step `1 / ||C||^2`, in double precision where the device has it."""
    C = on_device(dictionary, device)
    step = 1.0 / float(torch.linalg.eigvalsh(C.T @ C)[-1].clamp_min(1e-30))
    return in_blocks(Z, l1, C, lambda z, lam: _block(z, C, lam, step, tol, max_iterations or ITERATIONS))
