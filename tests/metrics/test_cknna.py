"""Neighbourhoods of two sets of vectors: published formula, closed forms, and chance."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlsae.metrics.cknna import cknna


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_neighbourhoods_are_those_of_turned_vectors_and_not_of_others():
    """Card 28: CKNNA is 1 for equal and for turned vectors, falls with noise, and is small for independent ones.

    Not 0: of 10 neighbours among n - 1, `100 / (n - 1)` coincide by chance.
    """
    x = F.normalize(torch.randn(1000, 16, generator=_generator(1)), dim=1)
    Q = torch.linalg.qr(torch.randn(16, 16, generator=_generator(2)))[0]
    assert cknna(x, x) == pytest.approx(1, abs=1e-12)
    assert cknna(x, 3 * x @ Q) == pytest.approx(1, abs=1e-3)  # single precision may exchange two neighbours
    noisy = [cknna(x, x + size * torch.randn(1000, 16, generator=_generator(3))) for size in (0.05, 0.2, 0.8)]
    assert 1 > noisy[0] > noisy[1] > noisy[2]
    for n in (200, 1000):
        others = [F.normalize(torch.randn(n, 16, generator=_generator(10 + s)), dim=1) for s in range(6)]
        assert 0 < np.mean([cknna(x[:n], other) for other in others]) < 10 / (n - 1)


def test_cknna_by_its_formula():
    """With all as neighbours, by the quadruples of which HSIC is the mean, `k_ij (l_ij + l_qr - 2 l_jq)`; and by loops."""
    n = 7
    x, y = torch.randn(n, 3, generator=_generator(4)).double(), torch.randn(n, 2, generator=_generator(5)).double()
    K, L = ((values @ values.T).numpy() for values in (x, y))

    def mean_of_quadruples(A, B):
        terms = [A[i, j] * (B[i, j] + B[q, r] - 2 * B[j, q]) for i, j, q, r in itertools.permutations(range(n), 4)]
        return np.mean(terms)

    expected = mean_of_quadruples(K, L) / (mean_of_quadruples(K, K) * mean_of_quadruples(L, L)) ** 0.5
    assert cknna(x, y, n - 1) == pytest.approx(expected, rel=1e-9)

    def near(A):
        return np.array(
            [[j in sorted(set(range(n)) - {i}, key=lambda j: -A[i, j])[:3] for j in range(n)] for i in range(n)]
        )

    def hsic(A, B):
        A, B = (np.where(np.eye(n), 0, values) for values in (A, B))
        return np.trace(A @ B) + A.sum() * B.sum() / ((n - 1) * (n - 2)) - 2 * (A @ B).sum() / (n - 2)

    of_x, of_y, both = near(K), near(L), near(K) & near(L)
    expected = hsic(K * both, L * both) / (hsic(K * of_x, K * of_x) * hsic(L * of_y, L * of_y)) ** 0.5
    assert cknna(x, y, 3) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="7 and 6 vectors with k=3"):
        cknna(x, y[:6], 3)
