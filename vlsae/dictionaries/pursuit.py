"""Greedy decompositions: matching pursuit and orthogonal matching pursuit, many vectors at once."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.least_squares import nonnegative_codes

UNIT = 0.02  # how far from 1 a norm may be: atoms stored in 16 bits are within .01


def _pick(correlations: Tensor, nonnegative: bool) -> Tensor:
    """Number of the next atom, `[B]`: of largest correlation, or largest magnitude."""
    return (correlations if nonnegative else correlations.abs()).argmax(-1)


def matching_pursuit(
    x: Tensor, atoms: Tensor, k: int, nonnegative: bool = True, tol: float = 0.0, by_gram: bool = True,
    repeats: bool = True, at_least: int = 0,
) -> Tensor:  # fmt: skip
    """`k` times: `j = argmax_i <r, D_i>`, `z_j += <r, D_j>`, `r -= <r, D_j> D_j` (Mallat and Zhang 1993).

    Args:
        x: `[B, d]`; atoms: `[n, d]`, of unit norm; gradients flow to both, through all steps.
        k: steps; an atom may be chosen again, so at most `k` codes are not zero.
        nonnegative: take positive correlations alone, and stop where there is none; else the largest magnitude.
        tol: stop where the norm of the rest is at most this.
        by_gram: update correlations by the atoms' Gram matrix, `O(B n)` a step, instead of computing them anew,
            `O(B n d)`, which keeps less for gradients.
        repeats: go on after an atom is chosen again; else that step is the last.
        at_least: steps before `tol` is looked at.

    Returns:
        Codes `[B, n]`. `||x||^2 = sum_t c_t^2 + ||r_k||^2` exactly.

    Raises:
        ValueError: for atoms of another norm, with which the rest may grow.

    Example:
        >>> matching_pursuit(torch.tensor([[3.0, 1.0, -2.0]]), torch.eye(3), k=2).tolist()
        [[3.0, 1.0, 0.0]]
    """
    lengths = atoms.detach().float().norm(dim=1)
    if (lengths - 1).abs().max() > UNIT:
        raise ValueError(
            f"Atoms have norms between {lengths.min():.3g} and {lengths.max():.3g}; matching pursuit needs 1: "
            "give normalize(atoms, dim=1)."
        )
    z, rest = x.new_zeros(len(x), len(atoms)), x
    gram = atoms @ atoms.T if by_gram else None
    correlations = x @ atoms.T if by_gram else None
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for step in range(k):
        j = _pick(correlations if by_gram else rest.detach() @ atoms.detach().T, nonnegative)
        c = correlations.gather(1, j[:, None])[:, 0] if by_gram else (rest * atoms[j]).sum(-1)
        if nonnegative:
            c = torch.relu(c)
        if tol and step >= at_least:
            c = c * (rest.detach().norm(dim=-1) > tol)
        if not repeats:
            c = c * going
            going = going & (z.detach().gather(1, j[:, None])[:, 0] == 0)
        z = z.scatter_add(1, j[:, None], c[:, None])
        if by_gram:
            correlations = correlations - c[:, None] * gram[j]
        if tol or not by_gram:
            rest = rest - c[:, None] * atoms[j]
    return z


def orthogonal_matching_pursuit(x: Tensor, atoms: Tensor, k: int, nonnegative: bool = True, tol: float = 0.0) -> Tensor:
    """Matching pursuit with all chosen codes fitted again after every choice (Pati et al. 1993).

    Args:
        x, atoms, k, tol: as for `matching_pursuit`; gradients flow through the last fit.
        nonnegative: fit by non-negative least squares (Bruckstein et al. 2008).

    Returns:
        Codes `[B, n]`.
    """
    chosen = torch.zeros(len(x), 0, dtype=torch.long, device=x.device)
    with torch.no_grad():
        rest, used, active = x, torch.zeros(len(x), len(atoms), dtype=torch.bool, device=x.device), chosen.bool()
        for _ in range(min(k, len(atoms))):
            j = _pick((rest @ atoms.T).masked_fill(used, 0.0), nonnegative)
            going = (rest.norm(dim=-1) > tol)[:, None]
            chosen, used = torch.cat([chosen, j[:, None]], 1), used.scatter(1, j[:, None], True)
            active = torch.cat([active, going], 1)
            codes = _fit(x, atoms[chosen], active)
            if nonnegative and (codes < 0).any():
                part = atoms[chosen] * active[..., None]
                codes = nonnegative_codes((part @ x[..., None])[..., 0], part @ part.mT, codes.clamp_min(0.0))
                active = active & (codes > 0)
            rest = x - (codes[:, None] @ atoms[chosen])[:, 0]
    return x.new_zeros(len(x), len(atoms)).scatter_add(1, chosen, _fit(x, atoms[chosen], active))


def _fit(x: Tensor, chosen: Tensor, active: Tensor) -> Tensor:
    """Least squares of `x [B, d]` on the active ones of `chosen [B, t, d]`: `[B, t]`, 0 where not `active [B, t]`."""
    part = chosen * active[..., None]
    ridge = torch.where(active, 4 * torch.finfo(x.dtype).eps, 1.0)  # equal atoms share what they explain
    codes = torch.linalg.solve(part @ part.mT + torch.diag_embed(ridge), (part @ x[..., None])[..., 0])
    return codes * active


@torch.no_grad()
def gradient_pursuit(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """Non-negative gradient pursuit: like orthogonal pursuit, with one exact line search in place of each fit.

    The gradient `g = D_S r` on the atoms chosen so far is followed by `<g, g> / ||g D_S||^2`, then codes below 0 are
    cut (Blumensath and Davies 2008; used for sparse inference with a dictionary's decoder by Smith 2024).

    Args:
        x: `[B, d]`; atoms: `[n, d]`; k: steps.

    Returns:
        Codes `[B, n]`, at most `k` of them not zero.
    """
    z = x.new_zeros(len(x), len(atoms))
    mask = torch.zeros_like(z, dtype=torch.bool)
    for _ in range(k):
        correlations = (x - z @ atoms) @ atoms.T
        best = correlations.masked_fill(mask, -torch.inf).max(dim=1)
        mask[best.values > 0, best.indices[best.values > 0]] = True
        gradient = correlations * mask
        along = (gradient @ atoms).square().sum(1, keepdim=True)
        z = torch.relu(z + gradient * gradient.square().sum(1, keepdim=True) / along.clamp_min(1e-12)) * mask
    return z
