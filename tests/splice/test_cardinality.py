"""A number of concepts in place of a penalty: pursuit against brute force, the path against its own certificate."""

import numpy as np
import pytest
from scipy.optimize import nnls

from tests.contract.test_solvers import check, problem, unit
from tests.splice.test_solvers import in_use
from vlsae.splice.solve import solve
from vlsae.splice.solvers import active_set

N, K, D = 40, 300, 48


@pytest.fixture(scope="module")
def correlated():
    Z, C = problem(K=K, d=D, n=N, seed=1)
    return Z, in_use(C)


def greedy(z, C, target):
    """Non-negative orthogonal matching pursuit by its definition: the largest positive correlation, then all weights."""
    z, C = z.astype(np.float64), C.astype(np.float64)
    chosen, w = [], np.zeros(len(C))
    while len(chosen) < target:
        correlation = C @ (z - w @ C)
        correlation[chosen] = -np.inf
        if correlation.max() <= 1e-9:
            break
        chosen.append(int(correlation.argmax()))
        fitted = nnls(C[chosen].T, z)[0]
        chosen = [k for k, value in zip(chosen, fitted) if value > 0]
        w[:] = 0
        w[chosen] = fitted[fitted > 0]
    return w


@pytest.mark.parametrize("target", [1, 2, 5, 12])
def test_pursuit_is_the_greedy_method(correlated, target):
    Z, C = correlated
    found = solve(Z, C, n_concepts=target, method="omp")
    assert (found.l0 == target).all()
    assert np.isnan(found.gap).all() and (found.l1 == 0).all()  # it solves no problem with a penalty
    expected = np.stack([greedy(z, C.C, target) for z in Z])
    # Equal supports, so the same least squares in double precision; the weights are given in single.
    assert np.array_equal(found.dense() > 0, expected > 0)
    np.testing.assert_allclose(found.dense(), expected, rtol=1e-6, atol=1e-7)


def test_pursuit_without_a_gram_matrix(correlated, monkeypatch):
    Z, C = correlated
    with_gram = solve(Z, C, n_concepts=8, method="omp")
    monkeypatch.setattr(active_set, "GRAM_LIMIT", K - 1)
    monkeypatch.setattr(active_set, "make_gram_rows", None)
    without = solve(Z, C, n_concepts=8, method="omp")
    # Candidates are compared in double precision by both, so that they choose the same.
    np.testing.assert_allclose(without.dense(), with_gram.dense(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", [1, 3, 10])
def test_the_path_has_at_most_as_many_and_certifies_itself(correlated, target):
    Z, C = correlated
    found = solve(Z, C, n_concepts=target, method="path")
    assert (found.l0 <= target).all()
    # Concepts come one at a time but for ties, of which there are none; one that goes as another comes can hide a number.
    assert (found.l0 == target).mean() >= 0.9
    check(found, Z, C.C, found.l1)
    again = solve(Z, C, found.l1)
    assert np.array_equal(again.dense() > 0, found.dense() > 0)
    assert np.array_equal(solve(Z, C, n_concepts=target).dense(), found.dense())  # what "active_set" stands for


@pytest.mark.parametrize("method", ["omp", "path"])
def test_threads_and_earlier_calls_change_nothing(method):
    Z, C = problem(K=2500, d=32, n=N, seed=2)
    dictionary = in_use(C)
    cold = solve(Z, dictionary, n_concepts=6, method=method, threads=2).dense()
    assert np.array_equal(solve(Z, dictionary, n_concepts=6, method=method, threads=1).dense(), cold)
    assert np.array_equal(solve(Z, in_use(C), n_concepts=6, method=method, threads=1).dense(), cold)


@pytest.mark.parametrize("method", ["omp", "path"])
def test_without_a_positive_correlation_there_are_no_concepts(method):
    C = unit(np.abs(np.random.default_rng(3).standard_normal((20, 8)))).astype(np.float32)
    Z = np.stack([-C[0], np.zeros(8), -C.sum(0), C[4]]).astype(np.float32)
    found = solve(Z, C, n_concepts=3, method=method)
    assert (found.l0[:3] == 0).all() and found.l0[3] >= 1


@pytest.mark.parametrize("method", ["omp", "path"])
def test_no_samples(method):
    assert solve(np.zeros((0, 4)), np.eye(4), n_concepts=2, method=method).to_scipy().shape == (0, 4)


def test_pursuit_ends_where_no_concept_helps():
    """Repeated concepts, and a sample that two of them make up: the third would have weight zero."""
    rng = np.random.default_rng(4)
    C = np.repeat(rng.integers(-4, 5, (6, 16)), 3, axis=0)
    Z = C[:1] + 2 * C[3:4]  # whole numbers, so that nothing is lost to rounding
    found = solve(Z, C, n_concepts=10, method="omp")
    assert found.l0[0] == 2
    np.testing.assert_allclose(found.dense()[0] @ C, Z[0], atol=1e-5)


def test_all_concepts_may_be_asked_for():
    Z, C = problem(K=12, d=16, n=3)
    found = solve(Z, C, n_concepts=12, method="omp")
    for z, w in zip(Z, found.dense()):
        fitted, residual = nnls(C.T.astype(float), z.astype(float))
        np.testing.assert_allclose(
            np.linalg.norm(z - w @ C), residual, atol=1e-6
        )  # then it is non-negative least squares


@pytest.mark.parametrize("target", [0, -1, K + 1, 1.5, 2.0, "3"])
@pytest.mark.parametrize("method", ["omp", "path"])
def test_impossible_numbers(correlated, target, method):
    with pytest.raises(ValueError, match=f"n_concepts={target}; give a whole number from 1 to {K}"):
        solve(*correlated, n_concepts=target, method=method)


def test_a_number_and_a_penalty_or_another_method(correlated):
    with pytest.raises(ValueError, match="n_concepts=3 and a penalty"):
        solve(*correlated, 0.1, n_concepts=3)
    with pytest.raises(ValueError, match="n_concepts=3 and a penalty"):
        solve(*correlated, lam=0.1, n_concepts=3, method="omp")
    with pytest.raises(ValueError, match="'fista' does not take n_concepts; use one of omp, path"):
        solve(*correlated, n_concepts=3, method="fista")
