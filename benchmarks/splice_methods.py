"""The solvers that `benchmarks/splice.py` compares: ours and the peers', each made ready by its own preparation.

A method is a function of a problem that prepares and returns the call to be timed: a function of a slice of the images.
It returns weights in the method's own form, which `as_csr` turns into the common one after the clock has stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from vlsae.splice import prepare, solve
from vlsae.splice.prepared import PreparedDictionary
from vlsae.splice.weights import ConceptWeights


@dataclass(frozen=True)
class Problem:
    """Decompose `Z [N, d]` into rows of `C [K, d]`: `min_{w >= 0} ||z - wC||^2 + l1 ||w||_1`."""

    Z: np.ndarray
    C: np.ndarray
    l1: float
    threads: int


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        make: prepares, which is not timed, and returns the call to be timed.
        needs: distribution that has to be installed; the row is left out without it.
        at_most: images a call; slow methods solve the first few of a batch.
        sizes: smallest and largest batch for which it is measured.
        once: whether it is so slow that one measurement has to do.
        gram: whether it needs memory for K x K numbers, which rules it out beyond some 25,000 concepts.
    """

    make: Callable[[Problem], Callable]
    needs: str | None = None
    at_most: int | None = None
    sizes: tuple[int, int] = (1, 1024)
    once: bool = False
    gram: bool = False


def products(p: Problem) -> dict[str, Callable]:
    """The batch times the dictionary in single precision, in four ways: what no exact method can do without."""
    transposed = np.ascontiguousarray(p.C.T)
    Z, C, Ct = torch.from_numpy(p.Z), torch.from_numpy(p.C), torch.from_numpy(transposed)
    return {
        "GEMM numpy Z @ C.T": lambda s: p.Z[s] @ p.C.T,
        "GEMM numpy Z @ Ct": lambda s: p.Z[s] @ transposed,
        "GEMM torch Z @ C.T": lambda s: Z[s] @ C.T,
        "GEMM torch Z @ Ct": lambda s: Z[s] @ Ct,
    }


def _prepared(p: Problem) -> Callable:
    dictionary = PreparedDictionary(p.C)
    return lambda s: solve(p.Z[s], dictionary, l1=p.l1, threads=p.threads)


def _raw(p: Problem) -> Callable:
    C = p.C.copy()  # `solve` remembers the last array: no other row shall find it
    return lambda s: solve(p.Z[s], C, l1=p.l1, threads=p.threads)


def _cold(p: Problem) -> Callable:
    return lambda s: solve(p.Z[s], PreparedDictionary(p.C), l1=p.l1, threads=p.threads)


def _ours(method: str) -> Callable:
    def make(p: Problem) -> Callable:
        dictionary = prepare(p.C)
        return lambda s: solve(p.Z[s], dictionary, l1=p.l1, method=method, threads=p.threads)

    return make


def _spams(p: Problem) -> Callable:
    import spams

    D = np.asfortranarray(p.C.T)
    settings = dict(lambda1=p.l1 / 2, mode=2, pos=True, numThreads=p.threads)
    return lambda s: spams.lasso(p.Z[s].T, D=D, **settings)


def _spams_gram(p: Problem) -> Callable:
    import spams

    Q, q = np.asfortranarray(p.C @ p.C.T), np.asfortranarray(p.C @ p.Z.T)
    settings = dict(lambda1=p.l1 / 2, mode=2, pos=True, numThreads=p.threads)
    return lambda s: spams.lasso(p.Z[s].T, Q=Q, q=q[:, s], **settings)


def _one_by_one(lasso, p: Problem) -> Callable:
    """How SpLiCE uses scikit-learn: one model, fitted to every image in turn."""
    X = np.asfortranarray(p.C.T)

    def call(s: slice) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of iterations: the gap column tells
            return np.stack([lasso.fit(X, z).coef_ for z in p.Z[s]])

    return call


def _sklearn(p: Problem) -> Callable:
    from sklearn.linear_model import Lasso

    settings = dict(positive=True, fit_intercept=False, max_iter=10_000, tol=1e-6)
    return _one_by_one(Lasso(alpha=p.l1 / (2 * p.C.shape[1]), **settings), p)


def _celer(p: Problem) -> Callable:
    from celer import Lasso

    return _one_by_one(Lasso(alpha=p.l1 / (2 * p.C.shape[1]), positive=True, fit_intercept=False, tol=1e-6), p)


METHODS: dict[str, Method] = {
    "ours, prepare(C)": Method(_prepared),
    "ours, array C": Method(_raw),
    "ours, cold": Method(_cold),
    "ours, active_set_torch": Method(_ours("active_set_torch")),
    "ours, coordinate_descent": Method(_ours("coordinate_descent"), at_most=8, sizes=(1, 64)),
    "ours, fista": Method(_ours("fista"), at_most=4, sizes=(2, 64), once=True),
    "ours, admm": Method(_ours("admm"), at_most=2, sizes=(2, 64), once=True),
    "spams.lasso, D": Method(_spams, "spams-bin", gram=True),
    "spams.lasso, Q and q given": Method(_spams_gram, "spams-bin", gram=True),
    "SpLiCE's way: sklearn loop": Method(_sklearn, "scikit-learn", at_most=16),
    "celer loop": Method(_celer, "celer", at_most=16),
}


def as_csr(result) -> scipy.sparse.csr_matrix:
    """Weights `[n, K]` from what a method returned: ours, spams's `[K, n]`, or dense rows."""
    if isinstance(result, ConceptWeights):
        return result.to_scipy()
    return scipy.sparse.csr_matrix(result.T if scipy.sparse.issparse(result) else result)
