"""Tests that hold their level on sparse, heavy-tailed paired counts, and find what was planted."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from tests.adaptation.comparison.planted import aggregates, counts, exchangeable
from vlsae.adaptation.comparison.changes import changes, false_discovery, sign_flip_p, sign_p
from vlsae.adaptation.comparison.groups import group_classes, group_latents
from vlsae.adaptation.comparison.overlap import overlaps

SEEDS = 200


def test_the_p_value_is_never_below_that_of_all_sign_flips():
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 5, 8, 11):
        signs = np.array(list(product([-1, 1], repeat=m)))
        for d in [np.ones(m, int), *(rng.geometric(0.2, (30, m)) * rng.choice([-1, 1], (30, m)))]:
            exact = (np.abs(signs @ np.abs(d)) >= abs(d.sum())).mean()
            assert sign_flip_p(d.sum(), (d**2).sum()) >= exact - 1e-12
    assert sign_flip_p(2.0, 2.0) == pytest.approx(0.5)  # here the constant is attained: two equal differences
    assert sign_flip_p(0.0, 0.0) == 1


def test_sign_test_and_false_discovery_against_scipy():
    more, fewer = np.array([9, 3, 0, 12]), np.array([0, 3, 7, 5])
    expected = [stats.binomtest(int(a), int(a + b)).pvalue for a, b in zip(more, fewer)]
    assert sign_p(more, fewer) == pytest.approx(expected)
    assert sign_p(np.array([0]), np.array([0])) == 1
    p = np.random.default_rng(0).random(50) ** 3
    for control in ("BH", "BY"):
        assert false_discovery(p, control) == pytest.approx(stats.false_discovery_control(p, method=control.lower()))


@pytest.fixture(scope="module")
def planted_runs():
    """200 data sets of 80 images and 60 latents, 6 of which get extra tokens on most images that have them."""
    runs = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        before, after = exchangeable(rng, 80, 60)
        null = changes(aggregates(before, [0] * 80), aggregates(after, [0] * 80))
        raised = after.copy()
        raised[:, :6] += rng.integers(1, 4, (80, 6)) * 8 * (rng.random((80, 6)) < 0.5)
        runs.append((null, changes(aggregates(before, [0] * 80), aggregates(raised, [0] * 80))))
    return runs


@pytest.mark.parametrize("q", [0.05, 0.2])
def test_false_discovery_and_family_wise_error_are_at_most_q(planted_runs, q):
    """Bounds: the mean share of false discoveries with three standard errors, and the binomial quantile of .999."""
    shares, found = [], []
    for _, run in planted_runs:
        latents = np.array(run.changed_latents(q), int)
        shares.append((latents >= 6).sum() / max(1, len(latents)))
        found.append((latents < 6).sum() / 6)
    assert np.mean(shares) <= q + 3 * np.std(shares) / np.sqrt(SEEDS)
    assert np.mean(found) > 0.99
    errors = sum(len(null.changed_latents(q)) > 0 for null, _ in planted_runs)
    assert errors <= stats.binom.ppf(0.999, SEEDS, q)


def test_p_values_of_the_null_are_valid(planted_runs):
    """At every level; sparse heavy-tailed differences have lighter tails than the bound, so much less is reported."""
    p = np.concatenate([null.p[null.tested] for null, _ in planted_runs])
    assert len(p) > 10_000
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level
    assert (p <= 0.2).mean() > 0.2 / 8


def test_many_like_differences_cost_no_more_than_the_constant():
    """Sums of many such are normal, so a p-value at most `level` has probability level / 3.18, within four errors."""
    rng = np.random.default_rng(0)
    tables = rng.poisson(20, (2, 150, 3000))
    p = changes(*(aggregates(table, [0] * 150) for table in tables)).p
    for level in (0.02, 0.1):
        expected = level / 3.1787
        assert abs((p <= level).mean() - expected) < 4 * np.sqrt(expected / len(p))


@pytest.fixture(scope="module")
def amplified():
    """Two classes; the adapted model fires a weak latent (17) on 30 more tokens of every image, and nothing else changed."""
    table = counts(np.random.default_rng(3), 60, 40)
    table[:, 17] = 0
    table[::3, 17] = 1
    after = table.copy()
    after[:, 17] += 30
    labels = np.arange(60) % 2
    return aggregates(table, labels), aggregates(after, labels)


@pytest.mark.parametrize("level", ["class", "dataset"])
@pytest.mark.parametrize("test", ["sign_flip", "sign"])
@pytest.mark.parametrize("control", ["BH", "BY"])
def test_an_amplified_direction_is_exactly_what_is_found(amplified, level, test, control):
    found = changes(*amplified, level=level, test=test, control=control, n_boot=20)
    assert found.changed_latents(0.01) == [17]
    at = found.changed(0.01)
    assert (found.difference[at] == 30).all() and (found.low[at] == 30).all() and (found.high[at] == 30).all()
    assert set(found.kinds(0.01)[at]) == {"amplified"}
    assert set(found.kinds(0.01, cutoff=5.0)[at]) == {"gained"}
    assert set(found.kinds()[~at]) == {"unchanged"}
    back = changes(*amplified[::-1], level=level)
    assert set(back.kinds(0.05, cutoff=5.0)[back.changed()]) == {"lost"}
    assert set(back.kinds()[back.changed()]) == {"weakened"}


def test_an_amplified_direction_goes_from_low_to_high(amplified):
    for groups in group_classes(*amplified, high=5, low=10).values():
        assert groups.low_to_high.tolist() == [17]
        assert groups.high_to_low.tolist() == []
    assert overlaps(*amplified, ks=(5,), n_boot=0)["class"].top_k[5].value == pytest.approx(
        0.8
    )  # it takes one of 5 places


@pytest.mark.parametrize("level", ["class", "dataset"])
def test_an_identical_vision_side_shows_no_change(amplified, level):
    base = amplified[0]
    found = changes(base, base, level=level)
    assert not found.tested.any() and not found.changed(0.2).any() and (found.p == 1).all()
    for groups in group_classes(base, base, 5, 10).values():
        assert len(groups.high) >= 5 and not len(groups.low_to_high) and not len(groups.high_to_low)
    for one in overlaps(base, base, ks=(1, 5, 40), n_boot=20).values():
        assert one.rows == pytest.approx(1, abs=1e-12) and one.rbo.value == pytest.approx(
            1
        )  # thirds add up with rounding
        assert all(metric.ci == pytest.approx((1, 1)) for metric in one.top_k.values())


def test_intervals_cover_the_true_difference():
    """Mean differences of known expectation: 95 % intervals cover it in 90 % to 98 % of 300 latents of 100 images."""
    rng = np.random.default_rng(0)
    before = rng.poisson(3, (100, 300))
    after = before + rng.poisson(2, (100, 300))
    found = changes(aggregates(before, [0] * 100), aggregates(after, [0] * 100), n_boot=200)
    assert 0.9 <= ((found.low <= 2) & (found.high >= 2)).mean() <= 0.98


def test_mistakes_are_told(amplified):
    base, adapted = amplified
    with pytest.raises(ValueError, match="test='t' is unknown"):
        changes(base, adapted, test="t")
    with pytest.raises(ValueError, match="same images"):
        changes(base, aggregates(adapted.image, np.zeros(60, int)))
    with pytest.raises(ValueError, match="1 <= high <= low"):
        group_latents(np.ones(3), np.ones(3), 5, 2)
