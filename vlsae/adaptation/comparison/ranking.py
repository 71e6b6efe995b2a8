"""Latents in the order of their activation: what a top k is, with ties and silent latents, and how far two agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vlsae.adaptation.comparison import ranking_kernels as kernels
from vlsae.threads import in_threads


@dataclass(frozen=True)
class Agreement:
    """How many latents two rankings share at every depth, for R pairs of rankings.

    A latent that is not above 0 is in no top k, so a top k holds `min(k, m)` of m active latents. Of a group of tied
    latents that k cuts through, each belongs to the top k with the share of places that are left for the group; two
    rankings share the smaller of a latent's two shares. So equal rankings agree wholly, however many ties they have, no
    order among tied latents has to be invented, and without ties this is `|T_b(k) & T_a(k)|`.

    Attributes:
        shared: `[R, depth + 1]`, at depth 0 to `depth`.
        active: `[R, 2]`, latents above 0 in each ranking.
    """

    shared: np.ndarray
    active: np.ndarray

    @property
    def depth(self) -> int:
        return self.shared.shape[1] - 1


def agreement(base: sparse.csr_matrix, adapted: sparse.csr_matrix, depth: int) -> Agreement:
    """Agreement of every row of one matrix with the same row of the other.

    Args:
        base, adapted: sparse `[R, n]`; each row ranks the latents, largest value first.
        depth: down to which place.

    Raises:
        ValueError: for unequal shapes.

    Example:
        >>> one = sparse.csr_matrix([[3.0, 2.0, 1.0, 0.0]])
        >>> agreement(one, sparse.csr_matrix([[3.0, 0.0, 1.0, 2.0]]), 3).shared.tolist()
        [[0.0, 1.0, 1.0, 2.0]]
    """
    if base.shape != adapted.shape:
        raise ValueError(f"Rankings of shapes {base.shape} and {adapted.shape} cannot be compared; give equal rows.")
    parts = []
    for rows in (base, adapted):
        rows = sparse.csr_matrix(rows)
        parts += [rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data.astype(np.float64)]
    shared, active = np.zeros((base.shape[0], depth + 1)), np.zeros((base.shape[0], 2), np.int64)
    in_threads(kernels.agreements, base.shape[0], *parts, base.shape[1], shared, active)
    return Agreement(shared, active)


def order_latents(values: np.ndarray) -> np.ndarray:
    """Latents by value, largest first; tied ones by number, `[n]`.

    Example:
        >>> order_latents(np.array([0, 2, 5, 2])).tolist()
        [2, 1, 3, 0]
    """
    return np.argsort(-np.asarray(values, np.float64), kind="stable")


def top_sets(rows: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """The top k of every row as ones, sparse `[R, n]`, where definite members are needed: ties go to lower numbers.

    Rows with fewer than k values above 0 have as many ones as these.

    Raises:
        ValueError: for k below 1.

    Example:
        >>> top_sets(sparse.csr_matrix([[1, 0, 4, 1], [0, 0, 3, 0]]), 2).toarray().tolist()
        [[1, 0, 1, 0], [0, 0, 1, 0]]
    """
    if k < 1:
        raise ValueError(f"k={k} was given; a top k needs k >= 1.")
    row, latent, value = sparse.find(rows)
    row, latent, value = (part[value > 0] for part in (row, latent, value))
    order = np.lexsort((latent, -value, row))
    row, latent = row[order], latent[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < k
    return sparse.csr_matrix((np.ones(kept.sum(), np.int64), (row[kept], latent[kept])), rows.shape)
