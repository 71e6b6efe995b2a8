"""`solve`: one interface to all solvers of the sparse non-negative decomposition."""

from __future__ import annotations

import inspect
import os

import numpy as np
import scipy.sparse

from vlsae.splice.prepared import SCALES, prepare
from vlsae.splice.solvers import SOLVERS
from vlsae.splice.weights import ConceptWeights

CERTIFIED = 256  # samples certified at a time


def penalty(l1=None, lam=None):
    """The penalty as `l1`, from either name: the paper's `lam` stands for `l1 = 2 lam`.

    Raises:
        ValueError: unless exactly one is given, finite and above zero.
    """
    if (l1 is None) == (lam is None):
        raise ValueError(
            f"l1={l1} and lam={lam} were given; give exactly one: l1 of the objective ||z - wC||^2 + l1 ||w||_1 "
            "(SpLiCE's l1_penalty), or the paper's lam = l1 / 2."
        )
    value = np.asarray(l1 if lam is None else 2.0 * np.asarray(lam, dtype=np.float64), dtype=np.float64)
    if not (np.isfinite(value) & (value > 0)).all():
        raise ValueError(f"The penalty is {l1 if lam is None else lam}; it must be finite and above 0.")
    return value


def _rows(Z, d: int) -> np.ndarray:
    """Samples as a contiguous float32 `[N, d]`."""
    Z = np.asarray(Z.detach().cpu().float() if hasattr(Z, "detach") else Z)
    if Z.ndim != 2 or Z.shape[1] != d:
        raise ValueError(f"Samples have shape {Z.shape}; this dictionary decomposes [N, {d}].")
    Z = np.require(Z, np.float32, ["C", "W"])  # read-only arrays would be compiled for once more
    if not np.isfinite(Z).all():
        bad = int(np.flatnonzero(~np.isfinite(Z).all(1))[0])
        raise ValueError(f"Sample {bad} holds NaN or infinite values; leave it out, or encode it again in float32.")
    if Z.size and max(Z.max(), -Z.min()) > SCALES[1]:
        raise ValueError(f"Samples hold values up to {np.abs(Z).max():.3g}; scale them, usually to norm 1.")
    return Z


def objective(Z, C, weights: scipy.sparse.csr_matrix, l1) -> np.ndarray:
    """`||z - wC||^2 + l1 ||w||_1` of every sample in double precision, `[N]`."""
    C = prepare(C).C.astype(np.float64)
    weights = weights.astype(np.float64)  # scipy sums single precision in single precision, whatever dtype is asked for
    residual = np.asarray(Z, dtype=np.float64) - weights @ C
    return (residual**2).sum(1) + np.asarray(l1) * np.asarray(weights.sum(1)).ravel()


def duality_gap(Z, C, weights: scipy.sparse.csr_matrix, l1) -> np.ndarray:
    """How much better than `weights` any other could be, at most: `P(w) - D(t r)`, `[N]`, in double precision.

    With the residual `r = z - wC` and `t = min(1, l1 / (2 max_j C_j r))` the point `t r` is dual feasible, and
    `P - D = (1 + t^2) ||r||^2 + l1 ||w||_1 - 2 t z.r` bounds the distance to the optimum from above, whatever `w >= 0`.

    Args:
        Z: `[N, d]`; C: `[K, d]`; weights: `[N, K]`, non-negative; l1: a number, or one a sample.

    Returns:
        `[N]`, zero up to rounding exactly at the optimum.

    Example:
        >>> import numpy as np, scipy.sparse
        >>> w = scipy.sparse.csr_matrix([[0.75, 0.0]])
        >>> duality_gap([[1.0, 0.0]], np.eye(2), w, 0.5).tolist()
        [0.0]
    """
    C = prepare(C).C.astype(np.float64)
    Z = np.asarray(Z, dtype=np.float64)
    l1 = np.broadcast_to(np.asarray(l1, dtype=np.float64), len(Z))
    gaps = np.empty(len(Z))
    for start in range(0, len(Z), CERTIFIED):
        part = slice(start, start + CERTIFIED)
        w = weights[part].astype(np.float64)
        r = Z[part] - w @ C
        t = l1[part] / np.maximum(2.0 * (r @ C.T).max(1), l1[part])
        rr, rz = (r * r).sum(1), (r * Z[part]).sum(1)
        gaps[part] = (1 + t * t) * rr + l1[part] * np.asarray(w.sum(1)).ravel() - 2 * t * rz
    return np.maximum(gaps, 0.0)


def thread_count(threads: int | None) -> int:
    """The number asked for, or torch's, which `OMP_NUM_THREADS` and `--threads` set; never more than processors."""
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    if not isinstance(threads, (int, np.integer)) or threads < 1:
        raise ValueError(f"threads={threads}; give a whole number from 1, or None for torch's number.")
    return min(threads, os.cpu_count() or 1)


def _certified(Z, dictionary, weights, gap, l1) -> ConceptWeights:
    """With the gaps that the solver left open, where there is a penalty."""
    unknown = np.flatnonzero(np.isnan(gap) & (l1 > 0))
    if len(unknown):
        gap[unknown] = duality_gap(Z[unknown], dictionary, weights[unknown], l1[unknown])
    return ConceptWeights(weights, gap, l1)


def solve(
    Z, C, l1=None, *, lam=None, n_concepts: int | None = None, method: str = "active_set", tol: float = 1e-6,
    max_iterations: int | None = None, threads: int | None = None, device: str | None = None,
) -> ConceptWeights:  # fmt: skip
    """Decompose samples into few rows of a dictionary with non-negative weights.

    `argmin_{w >= 0} ||z - w C||^2 + l1 ||w||_1` for every row `z` of `Z` (SpLiCE, arXiv 2402.10376, section 3, where
    `l1 = 2 lambda`), or, with `n_concepts`, the same with the penalty replaced by a number of concepts.

    Args:
        Z: samples `[N, d]`, array or tensor; SpLiCE's are centred and of unit norm.
        C: dictionary `[K, d]`, array, tensor or `prepare(C)`. What was derived from an array is kept while it lives
            unchanged, so that further calls are quicker.
        l1: penalty, a number or one a sample, above 0. `w` is 0 where `l1 >= 2 max_j C_j.z`.
        lam: the paper's name for `l1 / 2`; give one of the two.
        n_concepts: instead of a penalty: with "omp" exactly that many (fewer only where no column with a positive
            correlation is left), with "path" at most that many, by the smallest penalty that gives them.
        method: "active_set", "active_set_torch", "coordinate_descent", "spams", "fista", "admm"; with `n_concepts`
            "omp" or "path" ("active_set" stands for "path").
        tol: duality gap, relative to `||z||^2`, at which a sample is done.
        max_iterations: of the iterative methods; None for their own.
        threads: processor threads; None for torch's number.
        device: of "active_set_torch", "fista" and "admm"; None: a CUDA device where `C` or `Z` lies on one, in whose
            case "active_set" stands for "active_set_torch".

    Returns:
        `ConceptWeights`, with `.to_scipy()` CSR `[N, K]` and the certificate `.gap` `[N]`.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, no or two penalties, or an unknown method.

    Example:
        >>> import numpy as np
        >>> C = np.eye(3)[:2]
        >>> found = solve(np.array([[0.5, 1.0, 0.0]]), C, lam=0.25)
        >>> found.to_scipy().toarray().tolist()
        [[0.25, 0.75]]
    """
    device = device or next((str(t.device) for t in (C, Z) if getattr(t, "is_cuda", False)), "cpu")
    if device != "cpu" and method == "active_set" and n_concepts is None:
        method = "active_set_torch"
    if not 0 <= tol < np.inf:
        raise ValueError(
            f"tol={tol}; give a number from 0: the duality gap, relative to ||z||^2, that is small enough."
        )
    dictionary = prepare(C)
    rows = _rows(Z, dictionary.shape[1])
    threads = thread_count(threads)
    if n_concepts is not None:
        from vlsae.splice.cardinality import limited

        if l1 is not None or lam is not None:
            raise ValueError(f"n_concepts={n_concepts} and a penalty were given; give one of them.")
        weights, gap, used = limited(rows, dictionary, n_concepts, method=method, tol=tol, threads=threads)
        return _certified(rows, dictionary, weights, gap, used)
    value = penalty(l1, lam)
    if value.ndim and value.shape != (len(rows),):
        raise ValueError(f"The penalty has shape {value.shape}; give a number, or one for each of {len(rows)} samples.")
    per_sample = np.broadcast_to(value, len(rows)).astype(np.float64)
    solver = SOLVERS.get(method)
    if len(rows) == 0:
        return ConceptWeights(
            scipy.sparse.csr_matrix((0, dictionary.shape[0]), dtype=np.float32), np.zeros(0), per_sample
        )
    placed = {"device": device} if "device" in inspect.signature(solver).parameters else {}
    weights, gap = solver(
        rows, dictionary, per_sample, tol=tol, threads=threads, max_iterations=max_iterations, **placed
    )
    return _certified(rows, dictionary, weights, gap, per_sample)
