"""A number of concepts in place of a penalty: non-negative orthogonal matching pursuit, and the regularisation path."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import active_set as solver
from vlsae.splice.solvers import working_set as ws
from vlsae.splice.solvers.kernels import above, compiled, dot64, positive_maximum, sweep

METHODS = ("omp", "path")
TRIALS = 60  # penalties tried a sample
DESCENT = 0.7  # factor from one penalty to the next, until there are enough concepts; from then on by bisection
SMALLEST = 1e-4  # penalty at which the path ends, as a share of the one that gives no concepts


@compiled
def _pursue(rows, Z, Q, C, gram, scale, made, norms, target, with_gram, samples, s):
    """Add the column of largest positive correlation and fit all weights again, until there are `target`."""
    unit = 6e-8 * (Z.shape[1] + 64) * norms[0]
    for r in rows:
        idx, w, m, z = samples.idx[r], samples.w[r], samples.size[r], Z[r]
        ws.extend_gram(C, z, Q[r], idx, 0, m, 0.0, True, s)
        m = ws.fit(idx, w, m, 0, True, s)
        samples.status[r] = ws.DONE
        while m < target and samples.rounds[r] < 8 * target + 8:
            slack, missing = unit * np.sqrt(dot64(z, z)), False
            for k in range(m):
                missing = missing or not made[idx[k]]
                slack += w[k] * (0.5 * scale[idx[k]] + unit * norms[1 + idx[k]])
            if missing and with_gram:
                samples.status[r] = ws.MISSING
                break
            samples.rounds[r] += 1
            ws.residual(z, C, idx, w, m, s.r)
            if with_gram:
                sweep(Q[r], gram, scale, idx, w, m, s.corr)
            else:
                slack = unit * np.sqrt(dot64(z, z))
                for k in range(C.shape[0]):
                    s.corr[k] = dot64(C[k], s.r)
            n = above(s.corr, positive_maximum(s.corr) - 2.0 * slack, s.found)
            n = ws.without(s.found, n, idx, m)
            best, largest = -1, 1e-9 * np.sqrt(dot64(z, z)) * norms[0]
            for t in range(n):
                exact = dot64(C[s.found[t]], s.r)
                if exact > largest or (exact == largest and best > s.found[t]):
                    best, largest = s.found[t], exact
            if best < 0:
                break
            idx[m], w[m] = best, 0.0
            ws.extend_gram(C, z, Q[r], idx, m, m + 1, 0.0, True, s)
            m = ws.fit(idx, w, m + 1, m, True, s)
        samples.size[r] = m


def pursuit(Z: np.ndarray, dictionary: PreparedDictionary, target: int, threads: int) -> scipy.sparse.csr_matrix:
    """Non-negative OMP (Bruckstein, Elad, Zibulevsky 2008): exactly `target` concepts, unless no column helps any more."""
    K, d = dictionary.shape
    with_gram, parts = len(dictionary.C) <= solver.GRAM_LIMIT, []
    size = int(np.clip(solver.CORRELATIONS // K, 16, 1024))
    none = np.zeros((1, 1), np.int8), np.zeros(K, np.float32), np.zeros(K, np.bool_)
    scratches = [solver.make_scratch(target + 1, K, d) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool, solver.blas().limit(limits=1, user_api="blas"), dictionary.lock:
        each = map if threads == 1 else pool.map
        for start in range(0, len(Z), size):
            block = Z[start : start + size]
            Q, samples = solver.correlations(block, dictionary, each), solver.empty_samples(len(block), target + 1)
            waiting = np.arange(len(block))
            interrupted = np.zeros(len(block), np.bool_)
            while len(waiting):
                gram = dictionary.quantised if with_gram else none
                jobs = [
                    pool.submit(_pursue, waiting[i::threads], block, Q, dictionary.C, *gram, dictionary.bounds, target,
                                with_gram, samples, scratches[i])
                    for i in range(threads)
                ]  # fmt: skip
                for job in jobs:
                    job.result()
                waiting = solver.again(samples, waiting, interrupted)
                used = np.arange(target + 1) < samples.size[waiting, None]
                if len(waiting):
                    solver.make_gram_rows(dictionary, samples.idx[waiting][used], each)
            parts.append(solver.to_csr(samples.size, samples.idx, samples.w, K))
    return scipy.sparse.vstack(parts, "csr")


def path(Z: np.ndarray, dictionary: PreparedDictionary, target: int, tol: float, threads: int):
    """The solution with the smallest penalty found by bisection that has at most `target` concepts.

    Returns:
        Weights, gaps and penalties. Along the path concepts come (and seldom go) one at a time, so that nearly all
        samples get exactly `target`.
    """
    with solver.blas().limit(limits=1, user_api="blas"):
        blocks = [solver.correlations(Z[i : i + 256], dictionary).max(1) for i in range(0, len(Z), 256)]
    highest = 2 * np.concatenate(blocks)
    highest = np.maximum(highest.astype(np.float64), 1e-12) * (1 + 1e-6)
    few, enough = np.log(highest), np.full(len(Z), -np.inf)  # penalties, as logarithms, with at most and with more
    gap, used = np.zeros(len(Z)), highest.copy()
    rows, found = np.arange(len(Z)), {}
    for _ in range(TRIALS):
        trial = np.where(np.isfinite(enough[rows]), (enough[rows] + few[rows]) / 2, few[rows] + np.log(DESCENT))
        solved, gaps = solver.active_set(Z[rows], dictionary, np.exp(trial), tol=tol, threads=threads)
        counts = np.diff(solved.indptr)
        for i, row in enumerate(rows):
            if counts[i] <= target:
                found[row] = solved[i]
                gap[row], used[row], few[row] = gaps[i], np.exp(trial[i]), trial[i]
            else:
                enough[row] = trial[i]
        rows = rows[(counts != target) & (trial > np.log(highest[rows] * SMALLEST))]
        if not len(rows):
            break
    empty = scipy.sparse.csr_matrix((1, len(dictionary.C)), dtype=np.float32)
    weights = scipy.sparse.vstack([found.get(i, empty) for i in range(len(Z))], "csr")
    return weights, gap, used


def limited(Z: np.ndarray, dictionary: PreparedDictionary, target: int, *, method: str, tol: float, threads: int):
    """Weights, gaps and penalties for a number of concepts; gaps are NaN and penalties 0 for "omp"."""
    if method == "active_set":
        method = "path"
    if method not in METHODS:
        raise ValueError(f"method={method!r} does not take n_concepts; use one of {', '.join(METHODS)}.")
    if not isinstance(target, (int, np.integer)) or not 1 <= target <= dictionary.shape[0]:
        raise ValueError(
            f"n_concepts={target}; give a whole number from 1 to {dictionary.shape[0]}, the concepts there are."
        )
    if len(Z) == 0:
        return scipy.sparse.csr_matrix((0, dictionary.shape[0]), dtype=np.float32), np.zeros(0), np.zeros(0)
    if method == "omp":
        return pursuit(Z, dictionary, int(target), threads), np.full(len(Z), np.nan), np.zeros(len(Z))
    return path(Z, dictionary, int(target), tol, threads)
