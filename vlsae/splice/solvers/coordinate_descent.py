"""Cyclic coordinate descent in double precision: slow, simple, and independent of the default solver."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS
from vlsae.splice.solvers.kernels import compiled, dot64

ITERATIONS = 100_000  # sweeps over the active concepts


@compiled
def _descend(C, squared, places, w, r, lam):
    """One sweep over some concepts: each weight to its best value, the others fixed; returns the largest change."""
    change = 0.0
    for k in places:
        if squared[k] == 0.0:
            continue
        old = w[k]
        w[k] = max(0.0, old + (dot64(C[k], r) - lam) / squared[k])
        if w[k] != old:
            for i in range(r.shape[0]):
                r[i] += (old - w[k]) * C[k, i]
            change = max(change, abs(w[k] - old) * np.sqrt(squared[k]))
    return change


@compiled
def _gap(C, z, w, r, lam):
    largest, total = lam, 0.0
    for k in range(w.shape[0]):
        largest = max(largest, dot64(C[k], r))
        total += w[k]
    t, rr = lam / largest, dot64(r, r)
    return (1.0 + t * t) * rr + 2.0 * lam * total - 2.0 * t * dot64(z, r)


@SOLVERS.register("coordinate_descent")
def coordinate_descent(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol, threads, max_iterations=None):
    """Sweeps over all concepts, each followed by sweeps over the non-zero ones until these stand still."""
    C, squared = dictionary.C, dictionary.norms**2
    everything, rows = np.arange(len(C)), []
    limit = max_iterations or ITERATIONS
    for z, lam in zip(Z.astype(np.float64), l1 / 2, strict=True):
        w, r = np.zeros(len(C)), z.copy()
        still, spent = np.sqrt(tol) * 1e-2 * max(np.linalg.norm(z), 1e-30), 0
        while spent < limit:
            _descend(C, squared, everything, w, r, lam)
            if _gap(C, z, w, r, lam) <= 0.5 * tol * max(z @ z, 1e-30):
                break
            active, spent = np.flatnonzero(w), spent + 1
            while len(active) and _descend(C, squared, active, w, r, lam) > still and spent < limit:
                spent += 1
            still /= 2
        rows.append(scipy.sparse.csr_matrix(w.astype(np.float32)))
    return scipy.sparse.vstack(rows, "csr"), np.full(len(Z), np.nan)
