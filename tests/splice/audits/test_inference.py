"""Tests and intervals against scipy and against their definitions."""

import numpy as np
import pytest
from scipy import sparse, stats

from vlsae.splice.audits import benjamini_hochberg
from vlsae.splice.audits.inference import fisher_exact, percentiles, resampled_sums, upper_tail, wilson


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 50), (0,)])
def test_benjamini_hochberg_is_scipys(shape):
    p = np.random.default_rng(1).random(shape) ** 3
    p.flat[: p.size // 3] = p.flat[0] if p.size else 0  # ties
    expected = stats.false_discovery_control(p.ravel()).reshape(shape) if p.size else p
    np.testing.assert_allclose(benjamini_hochberg(p), expected, rtol=1e-14)


@pytest.mark.parametrize("p", [[0.1, np.nan], [-0.1], [1.2]])
def test_benjamini_hochberg_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="NaN or outside"):
        benjamini_hochberg(p)


def test_upper_tail_is_scipys_from_tens_to_a_million():
    rng = np.random.default_rng(2)
    for total in (20, 1000, 1_000_000):
        good, draws = rng.integers(1, total, 200), rng.integers(1, total, 200)
        x = np.minimum(np.ceil(good * draws / total + rng.integers(0, 3, 200)), np.minimum(good, draws))
        expected = stats.hypergeom.sf(x - 1, total, good, draws)
        # lgamma(1e6) is about 1e7, so its rounding leaves 1e7 * 2e-16 = 2e-9 of each of nine terms.
        np.testing.assert_allclose(upper_tail(x, draws, good, total), expected, rtol=2e-8)


def test_fisher_doubles_the_smaller_one_sided_test():
    rng = np.random.default_rng(3)
    for a, b, n, m in zip(rng.integers(0, 20, 60), rng.integers(0, 30, 60), [20] * 60, [30] * 60):
        table = [[a, n - a], [b, m - b]]
        one_sided = min(stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater"))
        assert fisher_exact(a, n, b, m) == pytest.approx(min(1.0, 2 * one_sided), rel=1e-9)
        assert fisher_exact(b, m, a, n) == pytest.approx(float(fisher_exact(a, n, b, m)), rel=1e-9)


@pytest.mark.parametrize("n, m, total", [(30, 20, 15), (200, 5, 9), (50, 50, 50)])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_fisher_holds_its_level_exactly(n, m, total, alpha):
    """Summed over every table with these margins, the chance of p <= alpha is at most alpha."""
    a = np.arange(max(0, total - m), min(n, total) + 1)
    p = fisher_exact(a, n, total - a, m)
    assert stats.hypergeom.pmf(a, n + m, n, total)[p <= alpha].sum() <= alpha * (1 + 1e-9)


def test_fisher_broadcasts_over_classes_and_concepts():
    assert fisher_exact(np.ones((3, 4)), np.full((3, 1), 5), np.zeros((3, 4)), np.full((3, 1), 9)).shape == (3, 4)


@pytest.mark.parametrize("hits, n", [(0, 1), (1, 1), (0, 50), (8, 10), (499, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_scipys(hits, n, level):
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson(hits, n, level), (expected.low, expected.high), atol=1e-12)


def test_resampling_has_the_moments_of_the_bootstrap():
    rng = np.random.default_rng(4)
    w = rng.random((80, 6)) * (rng.random((80, 6)) < 0.4)
    sums = resampled_sums(sparse.csr_matrix(w), 4000, rng)
    # Of 4,000 resamples the mean has the error sd / 63 and the variance, near normal, 2.2 %: four of each.
    sd = np.sqrt(80 * w.var(0))
    np.testing.assert_allclose(sums.mean(0), w.sum(0), atol=(4 * sd / 63).max())
    np.testing.assert_allclose(sums.var(0), sd**2, rtol=0.09)


def test_columns_are_resampled_together():
    w = np.random.default_rng(5).random((30, 1))
    sums = resampled_sums(sparse.csr_matrix(np.hstack([w, 1 - w])), 50, np.random.default_rng(0))
    np.testing.assert_allclose(sums.sum(1), 30, rtol=1e-12)


def test_percentiles_are_the_quantiles():
    low, high = percentiles(np.arange(101.0)[:, None], 0.9)
    assert (low.item(), high.item()) == pytest.approx((5, 95))
