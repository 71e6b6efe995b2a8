"""Overlap of rankings against its definition, with ties, silent latents, chance and resampling."""

import numpy as np
import pytest
from scipy import sparse

from tests.adaptation.comparison.planted import aggregates, counts
from vlsae.adaptation.comparison.overlap import (
    overlaps,
    random_rbo,
    random_top_k,
    rank_biased_overlap,
    top_k_overlap,
)  # fmt: skip
from vlsae.adaptation.comparison.ranking import agreement


def _rankings(rng, n, length_b, length_a):
    """Two untied rankings of some of n latents, as values, and as lists."""
    lists = [rng.permutation(n)[:length] for length in (length_b, length_a)]
    rows = np.zeros((2, n))
    for row, ranked in zip(rows, lists):
        row[ranked] = np.arange(len(ranked), 0, -1)
    return rows, lists


def _rbo_by_definition(b, a, p, far=4000):
    """`(1-p) sum_d p^(d-1) A_d` to a depth without weight, agreements extended as Webber et al. do."""
    s, length = sorted((len(b), len(a)))
    shared = [len(set(b[:d]) & set(a[:d])) for d in range(length + 1)]
    agreements = [(shared[d] + max(0, d - s) * shared[s] / s) / d for d in range(1, length + 1)]
    agreements += [agreements[-1]] * (far - length)
    return (1 - p) * sum(p**d * value for d, value in enumerate(agreements))


@pytest.mark.parametrize("lengths", [(9, 9), (4, 12), (12, 1)])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_untied_rankings_against_the_definitions(lengths, p):
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows, (b, a) = _rankings(rng, 15, *lengths)
        found = agreement(sparse.csr_matrix(rows[:1]), sparse.csr_matrix(rows[1:]), 15)
        assert found.active.tolist() == [list(lengths)]
        for k in (1, 3, 10, 15):
            expected = len(set(b[:k]) & set(a[:k])) / max(min(k, n) for n in lengths)
            assert top_k_overlap(found, k) == pytest.approx(expected)
        assert rank_biased_overlap(found, p) == pytest.approx(_rbo_by_definition(list(b), list(a), p), abs=1e-9)


def test_ties_and_silent_latents():
    b = sparse.csr_matrix([[5, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    a = sparse.csr_matrix([[5, 0, 0, 1, 0], [0, 0, 1, 1, 0], [2, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = agreement(b, a, 5)
    # k = 2: one place for three tied latents of the base, and the adapted model's second is one of them
    assert top_k_overlap(found, 2) == pytest.approx([(1 + 1 / 3) / 2, 0, 0, np.nan], nan_ok=True)
    assert top_k_overlap(found, 5) == pytest.approx([2 / 4, 0, 0, np.nan], nan_ok=True)  # four latents against two
    assert rank_biased_overlap(found)[[1, 2]].tolist() == [0, 0]
    assert np.isnan(rank_biased_overlap(found)[3])
    tied = sparse.csr_matrix(counts(np.random.default_rng(0), 20, 30))
    assert all(top_k_overlap(agreement(tied, tied, 30), k) == pytest.approx(1) for k in range(1, 31))
    mixed = np.random.default_rng(1).permutation(30)  # the names of latents do not matter
    other = sparse.csr_matrix(counts(np.random.default_rng(2), 20, 30))
    assert agreement(tied, other, 9).shared == pytest.approx(agreement(tied[:, mixed], other[:, mixed], 9).shared)


def test_chance_in_closed_form():
    """The mean over 4,000 pairs of random rankings, within four standard errors."""
    rng = np.random.default_rng(0)
    for sizes in ((8, 8), (3, 8)):
        rows = np.stack([_rankings(rng, 12, *sizes)[0] for _ in range(4000)], 1)
        found = agreement(sparse.csr_matrix(rows[0]), sparse.csr_matrix(rows[1]), 12)
        m = np.full(1, 12)
        for k in (2, 5, 10):
            drawn, expected = top_k_overlap(found, k), random_top_k(found.active[:1], m, k)
            assert abs(drawn.mean() - expected) < 4 * drawn.std() / np.sqrt(4000)
        drawn, expected = rank_biased_overlap(found, 0.9), random_rbo(found.active[:1], m, 12, 0.9)
        assert abs(drawn.mean() - expected) < 4 * drawn.std() / np.sqrt(4000)
    assert random_top_k(np.array([[50, 50]]), np.array([60]), 6).tolist() == [0.1]  # k / m


def test_levels_intervals_and_baselines():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 2.0, (3, 50))  # each class has latents of its own
    labels = np.repeat([4, 8, 9], 30)
    base = rng.poisson(rate[np.repeat(np.arange(3), 30)])
    adapted = np.where(rng.random(base.shape) < 0.2, rng.poisson(1.0, base.shape), base)
    one, other = aggregates(base, labels), aggregates(adapted, labels)
    found = overlaps(one, other, ks=(5, 20), n_boot=60, seed=1)
    assert {name: level.rows.shape[0] for name, level in found.items()} == {"image": 90, "class": 3, "dataset": 1}
    for name, level in found.items():
        for metric in (*level.top_k.values(), level.rbo):
            assert 0 <= metric.ci[0] <= metric.ci[1] <= 1
            assert metric.value > metric.baselines["random"]
            assert metric.n == len(level.rows)
        if name != "dataset":
            assert level.rbo.value > level.rbo.baselines["another"]
    again = overlaps(one, other, ks=(5, 20), n_boot=60, seed=1)
    assert again["class"].rbo == found["class"].rbo
    alone = agreement(
        sparse.csr_matrix(base[labels == 8].sum(0)[None]), sparse.csr_matrix(adapted[labels == 8].sum(0)[None]), 5
    )
    assert found["class"].rows[1, 0] == top_k_overlap(alone, 5)[0]
    with pytest.raises(ValueError, match="Level 'patch' is unknown"):
        overlaps(one, other, levels=("patch",))


def test_intervals_cover_the_overlap_of_the_true_rates():
    """Poisson counts of known rates, 40 images a class: 85 % of 40 intervals at 95 % (binomial quantile of .001: 82 %)."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.6, 2.0, (6, 80))
    other = rate * rng.choice([1, 1, 1, 0.4, 2.0], rate.shape)
    found = agreement(sparse.csr_matrix(rate), sparse.csr_matrix(other), 20)
    labels, ks = np.repeat(np.arange(6), 40), (5, 20)
    covered = np.zeros(2)
    for _ in range(40):
        pair = [aggregates(rng.poisson(rates[labels]), labels) for rates in (rate, other)]
        metrics = overlaps(*pair, levels=("class",), ks=ks, n_boot=60)["class"].top_k
        covered += [metrics[k].ci[0] <= top_k_overlap(found, k).mean() <= metrics[k].ci[1] for k in ks]
    assert (covered / 40 >= 0.85).all()
    assert all(metrics[k].ci[1] - metrics[k].ci[0] < 0.2 for k in ks)  # and they say something
