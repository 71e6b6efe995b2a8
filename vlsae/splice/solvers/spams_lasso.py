"""The LARS solver of SPAMS (Mairal, Bach, Ponce, Sapiro 2010): an independent exact solver in C++."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS


@SOLVERS.register("spams")
def spams_lasso(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None):
    """`spams.lasso` with `lambda1 = l1 / 2`, which minimises half of our objective; columns of zeros are left out."""
    import spams

    usable = np.flatnonzero(dictionary.norms > 0)
    D = np.asfortranarray(dictionary.C[usable].T)
    weights = scipy.sparse.lil_matrix((len(Z), len(dictionary.C)), dtype=np.float32).tocsr()
    parts = []
    for value in np.unique(l1):
        rows = np.flatnonzero(l1 == value)
        found = spams.lasso(
            np.asfortranarray(Z[rows].T), D=D, lambda1=float(value) / 2, mode=2, pos=True, numThreads=threads
        )
        found = scipy.sparse.coo_matrix(found)
        parts.append((rows[found.col], usable[found.row], found.data))
    row, concept, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    kept = value > 0
    weights = scipy.sparse.csr_matrix((value[kept], (row[kept], concept[kept])), weights.shape, dtype=np.float32)
    weights.sort_indices()
    return weights, np.full(len(Z), np.nan)
