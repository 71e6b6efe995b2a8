"""The default solver: one matrix product, then a small working set per sample, certified by its duality gap.

Per sample: add the columns that violate optimality most, minimise over the working set by Lawson and Hanson's method on
a Cholesky factor, refresh the correlations, repeat. The refresh is a sweep over rows of a Gram matrix quantised to int8
(a quarter of the memory traffic); the quantisation error is bounded, and columns within the bound of the threshold are
computed exactly, so that the certificate holds for the true dictionary. Rows are made when first needed. Beyond
`GRAM_LIMIT` concepts there is no Gram matrix: residuals are multiplied with the dictionary once a round.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import scipy.sparse
from threadpoolctl import ThreadpoolController

from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.solvers import SOLVERS
from vlsae.splice.solvers import working_set as ws

FIRST, MORE = 8, 10  # violators added in the first and in later rounds
CAPACITY = 64  # of a working set to begin with; doubled where it does not do
CORRELATIONS = 2**24  # numbers of a block's first matrix product, at most
GRAM_LIMIT = 25_000  # concepts; int8 rows of that many take up to 625 MB
GRAM_ROWS = 512  # made in one matrix product
MAX_ROUNDS = 5000


@lru_cache(maxsize=1)
def blas() -> ThreadpoolController:
    """Looking for the loaded BLAS libraries takes milliseconds, so it is done once."""
    return ThreadpoolController()


def empty_samples(n: int, capacity: int) -> ws.Samples:
    """Samples without a working set yet."""
    return ws.Samples(
        idx=np.zeros((n, capacity), np.int64), w=np.zeros((n, capacity)), size=np.zeros(n, np.int64),
        status=np.full(n, ws.MISSING), rounds=np.zeros(n, np.int64), gap=np.full(n, np.inf),
        precise=np.zeros(n, np.bool_),
    )  # fmt: skip


def make_scratch(capacity: int, K: int, d: int) -> ws.Scratch:
    """Working memory of one thread."""
    square, line = (capacity, capacity), capacity
    return ws.Scratch(
        corr=np.empty(K, np.float32), found=np.empty(K, np.int64), exact=np.empty(K), r=np.empty(d),
        A=np.empty(square), L=np.empty(square), b=np.empty(line), x=np.empty(line), y=np.empty(line),
        keep=np.empty(line, np.int64),
    )  # fmt: skip


def make_gram_rows(dictionary: PreparedDictionary, concepts: np.ndarray) -> None:
    """Those rows of the quantised Gram matrix that nobody has made yet."""
    gram, scale, made = dictionary.quantised
    wanted = np.unique(concepts)
    wanted = wanted[~made[wanted]]
    for start in range(0, len(wanted), GRAM_ROWS):
        rows = wanted[start : start + GRAM_ROWS]
        ws.quantise(dictionary.C[rows] @ dictionary.transposed, rows, gram, scale, made)


class _Block:
    """Some samples on their way to the solution."""

    def __init__(self, Z: np.ndarray, dictionary: PreparedDictionary, l1: np.ndarray, tol: float, threads: int):
        self.Z, self.dictionary, self.lam, self.threads = Z, dictionary, l1 / 2, threads
        self.tol = tol * np.maximum(np.einsum("nd,nd->n", Z, Z, dtype=np.float64), 1e-30)
        self.samples = empty_samples(len(Z), CAPACITY)
        self.Q = Z @ dictionary.transposed
        self.R = np.zeros_like(Z)
        self._make_scratches()

    def _make_scratches(self) -> None:
        shape = self.samples.idx.shape[1], *self.dictionary.shape
        self.scratches = [make_scratch(*shape) for _ in range(self.threads)]

    def _widen(self) -> None:
        more = ((0, 0), (0, self.samples.idx.shape[1]))
        self.samples = self.samples._replace(idx=np.pad(self.samples.idx, more), w=np.pad(self.samples.w, more))
        self._make_scratches()

    def _with_gram(self, rows: np.ndarray, scratch: ws.Scratch) -> None:
        ws.advance(
            rows, self.Z, self.Q, self.dictionary.C, *self.dictionary.quantised, self.dictionary.bounds, self.lam,
            self.tol, FIRST, MORE, self.samples, scratch, MAX_ROUNDS,
        )  # fmt: skip

    def _with_residuals(self, places: np.ndarray, rows: np.ndarray, corr: np.ndarray, scratch: ws.Scratch) -> None:
        ws.advance_once(
            rows[places], self.Z, corr[places], self.dictionary.C, self.dictionary.bounds, self.lam, self.tol, FIRST,
            MORE, self.samples, scratch, self.R, MAX_ROUNDS,
        )  # fmt: skip

    def _round(self, waiting: np.ndarray, each) -> None:
        """One call of the compiled code a thread."""
        if len(self.dictionary.C) <= GRAM_LIMIT:
            used = np.arange(self.samples.idx.shape[1]) < self.samples.size[waiting, None]
            make_gram_rows(self.dictionary, self.samples.idx[waiting][used])
            parts = [waiting[i :: self.threads] for i in range(self.threads)]
            list(each(self._with_gram, parts, self.scratches))
            return
        corr = self.R[waiting] @ self.dictionary.transposed if self.samples.rounds.any() else self.Q
        parts = [np.arange(len(waiting))[i :: self.threads] for i in range(self.threads)]
        list(each(lambda part, scratch: self._with_residuals(part, waiting, corr, scratch), parts, self.scratches))

    def run(self, each) -> None:
        """Until every sample is certified; `each` maps a function over the threads' parts."""
        waiting = np.arange(len(self.Z))
        while len(waiting):
            self._round(waiting, each)
            if (self.samples.status[waiting] == ws.FULL).any():
                self._widen()
            waiting = waiting[np.isin(self.samples.status[waiting], (ws.MISSING, ws.FULL))]


def to_csr(sizes: np.ndarray, idx: np.ndarray, w: np.ndarray, K: int) -> scipy.sparse.csr_matrix:
    """Working sets `[N, capacity]`, of which the first `sizes` places count, as CSR sorted by concept."""
    used = (np.arange(idx.shape[1]) < sizes[:, None]) & (w.astype(np.float32) > 0)
    order = np.argsort(np.where(used, idx, np.iinfo(np.int64).max), axis=1)
    used, idx, w = (np.take_along_axis(a, order, 1) for a in (used, idx, w))
    indptr = np.concatenate([[0], np.cumsum(used.sum(1))])
    return scipy.sparse.csr_matrix((w[used].astype(np.float32), idx[used].astype(np.int32), indptr), (len(idx), K))


@SOLVERS.register("active_set")
def active_set(Z, dictionary: PreparedDictionary, l1: np.ndarray, *, tol: float, threads: int, max_iterations=None):
    """Weights and gaps by working sets; see the module."""
    size = int(np.clip(CORRELATIONS // dictionary.shape[0], 16, 1024))
    weights, gaps = [], []
    with ThreadPoolExecutor(threads) as pool, blas().limit(limits=threads, user_api="blas"), dictionary.lock:
        for start in range(0, len(Z), size):
            part = slice(start, start + size)
            block = _Block(Z[part], dictionary, l1[part], tol, min(threads, len(Z[part])))
            block.run(map if block.threads == 1 else pool.map)
            s = block.samples
            weights.append(to_csr(s.size, s.idx, s.w, dictionary.shape[0]))
            gaps.append(np.where(s.status == ws.DONE, s.gap, np.nan))
    return (weights[0] if len(weights) == 1 else scipy.sparse.vstack(weights, "csr")), np.concatenate(gaps)
