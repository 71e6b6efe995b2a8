"""The default solver: one matrix product, then a small working set per sample, certified by its duality gap.

Per sample: add the columns that violate optimality most, minimise over the working set by Lawson and Hanson's method on
a Cholesky factor, refresh the correlations, repeat. The refresh is a sweep over rows of a Gram matrix quantised to int8
(a quarter of the memory traffic); the quantisation error is bounded, and columns within the bound of the threshold are
computed exactly, so that the certificate holds for the true dictionary. Rows are made when first needed. For few samples
of a new dictionary, and beyond `GRAM_LIMIT` concepts, there is no Gram matrix: residuals are multiplied with the
dictionary once a round.
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
from vlsae.splice.solvers.kernels import quantise

FIRST, MORE = 8, 10  # violators added in the first and in later rounds
WIDE = 24  # the same where a round costs a matrix product
CAPACITY = 64  # of a working set to begin with; doubled where it does not do
CORRELATIONS = 2**24  # numbers of a block's first matrix product, at most
GRAM_LIMIT = 25_000  # concepts; int8 rows of that many take up to 625 MB
GRAM_ROWS = 512  # made in one matrix product
FEW, MANY = 32, 256  # samples seen before, or given at once, that make the Gram matrix and transposed copy worth it
COLUMNS = 5000  # of a matrix product, about, given to one thread
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
        precise=np.zeros(n, np.bool_), best=np.full(n, np.inf), idle=np.zeros(n, np.int64),
        level=np.full(n, capacity),
    )  # fmt: skip


def make_scratch(capacity: int, K: int, d: int) -> ws.Scratch:
    """Working memory of one thread."""
    square, line = (capacity, capacity), capacity
    return ws.Scratch(
        corr=np.empty(K, np.float32), found=np.empty(K, np.int64), exact=np.empty(K), r=np.empty(d),
        A=np.empty(square), L=np.empty(square), b=np.empty(line), x=np.empty(line), y=np.empty(line),
        keep=np.empty(line, np.int64),
    )  # fmt: skip


def correlations(Z: np.ndarray, dictionary: PreparedDictionary, each=map) -> np.ndarray:
    """`Z C^T`; `each` maps a function over blocks of columns, the same for any number of threads, whose bits BLAS's
    own threads would change. A few samples are not worth the transposed copy of the dictionary."""
    if len(Z) < FEW and "transposed" not in dictionary.__dict__:
        return Z @ dictionary.C.T
    columns = dictionary.transposed
    out = np.empty((len(Z), columns.shape[1]), np.float32)
    bounds = np.linspace(0, columns.shape[1], 1 + 2 * max(1, round(columns.shape[1] / 2 / COLUMNS))).astype(int)

    def block(first: int, last: int) -> None:
        np.matmul(Z, columns[:, first:last], out=out[:, first:last])

    list(each(block, bounds[:-1], bounds[1:]))
    return out


def make_gram_rows(dictionary: PreparedDictionary, concepts: np.ndarray, each=map) -> None:
    """Those rows of the quantised Gram matrix that nobody has made yet."""
    gram, scale, made = dictionary.quantised
    wanted = np.unique(concepts)
    wanted = wanted[~made[wanted]]
    for start in range(0, len(wanted), GRAM_ROWS):
        rows = wanted[start : start + GRAM_ROWS]
        quantise(correlations(dictionary.C[rows], dictionary, each), rows, gram, scale, made)


def again(samples: ws.Samples, waiting: np.ndarray, interrupted: np.ndarray | None) -> np.ndarray:
    """Which of the waiting samples have to go on.

    A sample that was interrupted starts once more when it is done: resuming rounds otherwise than going through, and
    the result would depend on which rows of the Gram matrix other samples had needed before.
    """
    status = samples.status[waiting]
    further = (status == ws.MISSING) | (status == ws.FULL)
    if interrupted is not None:
        anew = waiting[~further & interrupted[waiting]]
        if not len(anew) and not further.any():
            return waiting[:0]
        interrupted[waiting[status == ws.MISSING]] = True
        interrupted[anew] = False
        first = empty_samples(len(anew), CAPACITY)
        for field in ("size", "rounds", "precise", "best", "idle", "level"):
            getattr(samples, field)[anew] = getattr(first, field)
        further |= np.isin(waiting, anew)
    return waiting[further]


class _Block:
    """Some samples on their way to the solution; `each` maps a function over the threads' parts."""

    def __init__(
        self, Z: np.ndarray, dictionary: PreparedDictionary, l1: np.ndarray, tol: float, threads: int, each, with_gram
    ):
        self.Z, self.dictionary, self.lam, self.threads, self.each = Z, dictionary, l1 / 2, threads, each
        self.tol = tol * np.maximum(np.einsum("nd,nd->n", Z, Z, dtype=np.float64), 1e-30)
        self.samples = empty_samples(len(Z), CAPACITY if with_gram else 2 * CAPACITY)
        self.Q = correlations(Z, dictionary, each)
        self.R = np.zeros_like(Z)
        self.with_gram = with_gram
        self.interrupted = np.zeros(len(Z), np.bool_) if self.with_gram else None
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
            rows[places], self.Z, corr[places], self.dictionary.C, self.dictionary.bounds, self.lam, self.tol, WIDE,
            WIDE, self.samples, scratch, self.R, MAX_ROUNDS,
        )  # fmt: skip

    def _round(self, waiting: np.ndarray) -> None:
        """One call of the compiled code a thread."""
        if self.with_gram:
            used = np.arange(self.samples.idx.shape[1]) < self.samples.size[waiting, None]
            make_gram_rows(self.dictionary, self.samples.idx[waiting][used], self.each)
            parts = [waiting[i :: self.threads] for i in range(self.threads)]
            list(self.each(self._with_gram, parts, self.scratches))
            return
        corr = correlations(self.R[waiting], self.dictionary, self.each) if self.samples.rounds.any() else self.Q
        parts = [np.arange(len(waiting))[i :: self.threads] for i in range(self.threads)]
        list(self.each(lambda part, scratch: self._with_residuals(part, waiting, corr, scratch), parts, self.scratches))

    def run(self) -> None:
        """Until every sample is certified."""
        waiting = np.arange(len(self.Z))
        while len(waiting):
            self._round(waiting)
            if (self.samples.status[waiting] == ws.FULL).any():
                self._widen()
            waiting = again(self.samples, waiting, self.interrupted)


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
    with ThreadPoolExecutor(threads) as pool, blas().limit(limits=1, user_api="blas"), dictionary.lock:
        each = map if threads == 1 else pool.map
        with_gram = len(dictionary.C) <= GRAM_LIMIT and (dictionary.seen >= FEW or len(Z) >= MANY)
        dictionary.seen += len(Z)
        for start in range(0, len(Z), size):
            part = slice(start, start + size)
            block = _Block(Z[part], dictionary, l1[part], tol, min(threads, len(Z[part])), each, with_gram)
            block.run()
            s = block.samples
            weights.append(to_csr(s.size, s.idx, s.w, dictionary.shape[0]))
            gaps.append(np.where(s.status == ws.DONE, s.gap, np.nan))
    return (weights[0] if len(weights) == 1 else scipy.sparse.vstack(weights, "csr")), np.concatenate(gaps)
