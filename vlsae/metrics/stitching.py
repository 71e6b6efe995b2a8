"""What a wider dictionary has that a narrower one lacks: latents inserted, exchanged, and all the way between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vlsae.dictionaries.base import Dictionary
from vlsae.metrics.matching import cosines, max_cosine


@dataclass(frozen=True)
class Group:
    """Latents of the narrow and of the wide dictionary that stand for each other, one side possibly empty."""

    narrow: list[int]
    wide: list[int]


def classify_latents(narrow: Dictionary, wide: Dictionary, threshold: float = 0.7) -> tuple[Tensor, Tensor]:
    """Which latents of `wide` are new: none of `narrow`'s atoms has a cosine above `threshold` (arXiv 2502.04878).

    Returns:
        Bool `[n_wide]`, True for new, False for refined ones; and the best cosines.
    """
    best = max_cosine(wide.atoms, narrow.atoms)[0]
    return best <= threshold, best


def _error(x: Tensor, xhat: Tensor) -> float:
    return float((x - xhat).double().square().sum(-1).mean())


def _check(narrow: Dictionary, wide: Dictionary) -> None:
    kinds = {narrow.transform.kind, wide.transform.kind}
    if kinds != {"none"}:
        raise ValueError(
            f"Dictionaries behind transforms ({', '.join(sorted(kinds))}) have no common space; fold them."
        )


@torch.no_grad()
def insertion_effect(narrow: Dictionary, wide: Dictionary, x: Tensor) -> Tensor:
    """The change of `E||x - xhat||^2` when one latent of `wide` is added to `narrow`'s reconstruction, `[n_wide]`.

    `xhat` becomes `xhat + z_j W_j`, so the change is `E[z_j^2] ||W_j||^2 - 2 E[z_j <x - xhat, W_j>]`: negative for a
    latent that explains what was missing, positive for one that counts twice.

    Args:
        narrow, wide: of one site, without input transforms.
        x: `[N, d]`.
    """
    _check(narrow, wide)
    error, z = (x - narrow(x)).double(), wide.encode(x).double()
    atoms = wide.atoms.double()
    return z.square().mean(0) * atoms.square().sum(1) - 2 * (z * (error @ atoms.T)).mean(0)


def swap_groups(narrow: Dictionary, wide: Dictionary, threshold: float = 0.7) -> list[Group]:
    """Connected components of "cosine above `threshold`": latents that must be exchanged together."""
    close = (cosines(narrow.atoms, wide.atoms) > threshold).cpu().numpy()
    n, m = close.shape
    graph = np.zeros((n + m, n + m), dtype=bool)
    graph[:n, n:] = close
    count, label = connected_components(graph, directed=False)
    members = [np.flatnonzero(label == c) for c in range(count)]
    return [Group([int(i) for i in group if i < n], [int(i) - n for i in group if i >= n]) for group in members]


@torch.no_grad()
def replacement_effect(narrow: Dictionary, wide: Dictionary, x: Tensor, groups: list[Group]) -> Tensor:
    """The change of `E||x - xhat||^2` when a group's narrow latents give way to its wide ones, `[len(groups)]`."""
    _check(narrow, wide)
    z, w = narrow.encode(x), wide.encode(x)
    xhat = narrow.decode(z)
    before = _error(x, xhat)
    changes = [
        _error(x, xhat - z[:, g.narrow] @ narrow.atoms[g.narrow] + w[:, g.wide] @ wide.atoms[g.wide]) - before
        for g in groups
    ]
    return torch.tensor(changes, dtype=torch.float64)


@torch.no_grad()
def combined_curve(
    narrow: Dictionary, wide: Dictionary, x: Tensor, groups: list[Group] | None = None, threshold: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Errors on the way from `narrow` to `wide`, one group exchanged after the other (arXiv 2502.04878, section 4).

    The decoder's bias moves in proportion to the groups exchanged. Both ends are the dictionaries' own errors.

    Args:
        narrow, wide: of one site, without input transforms.
        x: `[N, d]`.
        groups: in the order of exchange; `swap_groups(threshold)` with new latents first where None.
        threshold: of the groups.

    Returns:
        Mean number of active latents and mean squared error, `[len(groups) + 1]` each.
    """
    _check(narrow, wide)
    if groups is None:
        groups = sorted(swap_groups(narrow, wide, threshold), key=lambda g: len(g.narrow))
    z, w = narrow.encode(x), wide.encode(x)
    kept, added = torch.ones(narrow.n_latents, dtype=torch.bool), torch.zeros(wide.n_latents, dtype=torch.bool)
    active, errors = [], []
    for done in range(len(groups) + 1):
        if done:
            kept[groups[done - 1].narrow] = False
            added[groups[done - 1].wide] = True
        share = done / max(1, len(groups))
        bias = (1 - share) * narrow.b_dec + share * wide.b_dec
        xhat = z[:, kept] @ narrow.atoms[kept] + w[:, added] @ wide.atoms[added] + bias
        active.append(float((z[:, kept] != 0).sum(1).float().mean() + (w[:, added] != 0).sum(1).float().mean()))
        errors.append(_error(x, xhat))
    return torch.tensor(active), torch.tensor(errors, dtype=torch.float64)
