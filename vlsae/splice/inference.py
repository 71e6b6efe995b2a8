"""Sparse inference by optimisation with the atoms of any dictionary, in place of its encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.pursuit import gradient_pursuit
from vlsae.splice.solve import solve

METHODS = ("encoder", "lasso", "omp", "gradient_pursuit", "refine")
CHUNK = 1024  # vectors at a time where codes are dense


@torch.no_grad()
def infer(
    dictionary: Dictionary,
    x: Tensor,
    method: str = "lasso",
    *,
    l1: float | None = None,
    k: int | None = None,
    steps: int = 200,
) -> Tensor:
    """Codes of activations by optimisation over the dictionary's own atoms.

    lasso: `argmin_{z >= 0} ||x - b_dec - z W_dec||^2 + l1 ||z||_1` to a certified gap, or the smallest penalty with at
    most `k` latents; omp and gradient_pursuit: `k` latents greedily; refine: at most `steps` proximal gradient steps
    from the encoder's codes, with the lasso's objective, which never rises ("SAE + ITO", arXiv 2411.13117); encoder:
    what `encode` gives.

    Args:
        dictionary: anything with `W_dec` and `b_dec`; its input transform is applied.
        x: `[..., d]`.
        method: see above.
        l1: penalty of "lasso" and "refine"; 0 is allowed for "refine".
        k: number of latents for "omp", "gradient_pursuit", or "lasso" in place of `l1`.
        steps: of "refine".

    Returns:
        Non-negative codes `[..., n_latents]`, for `dictionary.decode`.

    Raises:
        ValueError: for an unknown method, or a missing `l1` or `k`.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> z = infer(TopKDictionary(8, 16, k=4), torch.randn(5, 8), "gradient_pursuit", k=3)
        >>> int((z > 0).sum(1).max()) <= 3
        True
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; use one of {', '.join(METHODS)}.")
    if method in ("omp", "gradient_pursuit") and k is None:
        raise ValueError(f"{method!r} needs k, the number of latents a vector.")
    if (method == "refine" and l1 is None) or (method == "lasso" and (l1 is None) == (k is None)):
        raise ValueError(f"{method!r} needs a penalty l1{' or a number k' if method == 'lasso' else ''}.")
    if method == "encoder":
        return dictionary.encode(x)
    flat = x.reshape(-1, x.shape[-1])
    if method == "refine":
        parts = [_refine(dictionary, part, l1, steps) for part in flat.split(CHUNK)]
        return torch.cat(parts).reshape(*x.shape[:-1], -1)
    target = dictionary.transform(flat.to(dictionary.W_dec.dtype)) - dictionary.b_dec
    if method == "gradient_pursuit":
        z = torch.cat([gradient_pursuit(part, dictionary.atoms, k) for part in target.split(CHUNK)])
    else:
        limit = {"l1": l1} if k is None else {"n_concepts": k, "method": "omp" if method == "omp" else "path"}
        found = solve(target, dictionary.atoms, **limit)
        z = torch.from_numpy(found.dense()).to(target)
    return z.reshape(*x.shape[:-1], -1)


def lasso_objective(target: Tensor, z: Tensor, atoms: Tensor, l1: float) -> Tensor:
    """`||t - z D||^2 + l1 ||z||_1` of every vector, `[N]`, for `target [N, d]` and `z [N, n]`."""
    return (target - z @ atoms).square().sum(-1) + l1 * z.abs().sum(-1)


def _refine(dictionary: Dictionary, x: Tensor, l1: float, steps: int) -> Tensor:
    """FISTA from the encoder's codes; a vector whose objective would rise takes a plain proximal step instead."""
    atoms = dictionary.atoms
    target = dictionary.transform(x.to(atoms.dtype)) - dictionary.b_dec
    z = torch.relu(dictionary.encode(x))
    size = 1 / (2 * torch.linalg.matrix_norm(atoms, 2) ** 2)

    def proximal(point: Tensor) -> Tensor:
        return torch.relu(point - size * (l1 - 2 * (target - point @ atoms) @ atoms.T))

    ahead, momentum, best = z, torch.ones(len(z), 1), lasso_objective(target, z, atoms, l1)
    momentum = momentum.to(z)
    for _ in range(steps):
        new = proximal(ahead)
        value = lasso_objective(target, new, atoms, l1)
        rose = value > best
        if rose.any():
            plain = proximal(z)
            level = lasso_objective(target, plain, atoms, l1)
            new = torch.where(rose[:, None], torch.where((level <= best)[:, None], plain, z), new)
            value = torch.where(rose, torch.minimum(level, best), value)
            momentum = torch.where(rose[:, None], torch.ones_like(momentum), momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = new + (momentum - 1) / following * (new - z)
        z, momentum, best = new, following, value
    return z
