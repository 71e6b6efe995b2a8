"""ADMM (Boyd et al. 2011), SpLiCE's batched solver, with every linear system in `d x d` instead of `K x K`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS
from vlsae.splice.solvers.fista import gap_of, in_blocks, on_device

ITERATIONS = 20_000
CHECKED = 25
RELAXATION = 1.6


class _System:
    """`(2 C C^T + rho I)^{-1} B` for any `rho`: by Woodbury's identity and one eigendecomposition of `C^T C [d, d]`.

    `(2 C C^T + rho I)^{-1} = (I - C (rho / 2 I + C^T C)^{-1} C^T) / rho`.
    """

    def __init__(self, C: Tensor):
        self.C = C
        self.values, self.vectors = torch.linalg.eigh(C.T @ C)

    def solve(self, B: Tensor, rho: Tensor) -> Tensor:
        inner = ((B @ self.C) @ self.vectors) / (rho / 2 + self.values) @ self.vectors.T
        return (B - inner @ self.C.T) / rho


def _block(Z: Tensor, C: Tensor, system: _System, lam: Tensor, tol: float, iterations: int) -> Tensor:
    V = U = Z.new_zeros(len(Z), len(C))
    target = 2 * Z @ C.T
    squared = C.square().sum(1).max().clamp_min(1e-30)  # the unit of rho, without which the balance depends on scales
    rho = (5.0 * squared).expand(len(Z), 1)
    enough = 0.5 * tol * Z.square().sum(1).clamp_min(1e-30)
    for i in range(1, iterations + 1):
        X = system.solve(target + rho * (V - U), rho)
        X = RELAXATION * X + (1 - RELAXATION) * V
        new = torch.relu(X + U - 2 * lam[:, None] / rho)
        U = U + X - new
        primal, dual = (X - new).norm(dim=1, keepdim=True), rho / squared * (new - V).norm(dim=1, keepdim=True)
        V = new
        if i % CHECKED == 0:
            if bool((gap_of(Z, C, V, lam) <= enough).all()):
                break
            factor = (primal / dual.clamp_min(1e-30)).sqrt().clamp(0.5, 2.0)
            factor = torch.where((factor > 0.8) & (factor < 1.25), torch.ones_like(factor), factor)
            rho, U = rho * factor, U / factor
    return V


@SOLVERS.register("admm")
def admm(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None, device="cpu"):
    """Over-relaxed ADMM with residual balancing, in double precision where the device has it."""
    C = on_device(dictionary, device)
    system = _System(C)
    return in_blocks(Z, l1, C, lambda z, lam: _block(z, C, system, lam, tol, max_iterations or ITERATIONS))
