"""The LARS solver of SPAMS (Mairal, Bach, Ponce, Sapiro 2010): an independent exact solver in C++."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS


def _near(norms: np.ndarray) -> np.ndarray:
    """The power of two next to every norm, 1 for 0: divided by it, numbers keep their digits."""
    return np.exp2(np.rint(np.log2(np.where(norms > 0, norms, 1.0))))


@SOLVERS.register("spams")
def spams_lasso(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None):
    """`spams.lasso` with `lambda1 = l1 / 2`, which minimises half of our objective.

    Its thresholds are absolute, so that samples and concepts are brought near norm 1. Columns of zeros are left out;
    of equal correlations, as with repeated columns, it makes wrong weights, which their gaps tell.
    """
    import spams

    usable = np.flatnonzero(dictionary.norms > 0)
    shape = len(Z), len(dictionary.C)
    if not len(usable):  # spams ends the process at an empty dictionary
        return scipy.sparse.csr_matrix(shape, dtype=np.float32), np.full(len(Z), np.nan)
    of_concepts = float(_near(dictionary.norms.max()))
    of_samples = _near(np.linalg.norm(Z.astype(np.float64), axis=1))
    D = np.asfortranarray(dictionary.C[usable].T / of_concepts, dtype=np.float64)
    X, penalties, parts = Z / of_samples[:, None], l1 / (of_samples * of_concepts), []
    for value in np.unique(penalties):
        rows = np.flatnonzero(penalties == value)
        found = spams.lasso(
            np.asfortranarray(X[rows].T), D=D, lambda1=float(value) / 2, mode=2, pos=True, numThreads=threads
        )
        found = scipy.sparse.coo_matrix(found)
        row = rows[found.col]
        parts.append((row, usable[found.row], found.data * of_samples[row] / of_concepts))
    row, concept, value = (np.concatenate(p) for p in zip(*parts, strict=True))
    kept = value > 0
    weights = scipy.sparse.csr_matrix((value[kept], (row[kept], concept[kept])), shape, dtype=np.float32)
    weights.sort_indices()
    return weights, np.full(len(Z), np.nan)
