"""Concepts of a class against the others."""

import numpy as np
import pytest
from scipy import stats

from tests.splice.audits.planted import coins, names
from vlsae.splice.audits import benjamini_hochberg, class_lift

LABELS = np.repeat(["ape", "bee", "cat"], [60, 90, 150])


def _prevalence(k, planted=()):
    p = np.full((len(LABELS), k), 0.15)
    for label, j, share in planted:
        p[label == LABELS, j] = share
    return p


def test_numbers_are_those_of_the_tables():
    w = coins(np.random.default_rng(0), 300, _prevalence(12, [("bee", 3, 0.5)]))
    found = class_lift(w, LABELS, names(12), n_boot=20)
    dense, there = w.toarray(), w.toarray() > 0
    assert found.classes == ("ape", "bee", "cat") and found.sizes.tolist() == [60, 90, 150]
    for c, label in enumerate(found.classes):
        inside = label == LABELS
        for j in range(12):
            a, b, n, m = there[inside, j].sum(), there[~inside, j].sum(), inside.sum(), (~inside).sum()
            assert found.lift[c, j] == pytest.approx((a + 0.5) / (n + 1) / ((b + 0.5) / (m + 1)), rel=1e-12)
            assert found.difference[c, j] == pytest.approx(
                dense[inside, j].mean() - dense[~inside, j].mean(), abs=1e-14
            )
            sides = [stats.fisher_exact([[a, n - a], [b, m - b]], alternative=s).pvalue for s in ("less", "greater")]
            assert found.p[c, j] == pytest.approx(min(1, 2 * min(sides)), rel=1e-8)
            assert found.prevalence_rest[c, j] == b / m
    np.testing.assert_array_equal(found.q, benjamini_hochberg(found.p))


def test_planted_concepts_are_found_on_the_right_side():
    w = coins(np.random.default_rng(1), 300, _prevalence(200, [("ape", 5, 0.7), ("ape", 9, 0.5), ("cat", 7, 0.0)]))
    found = class_lift(w, LABELS, names(200), n_boot=200)
    assert [r.text for r in found.top("ape", 2)] == ["concept 5", "concept 9"]
    assert [r.text for r in found.top("ape", 2, by="difference")] == ["concept 5", "concept 9"]
    assert [r.text for r in found.top("cat", 1, under=True)] == ["concept 7"]
    best = found.top("ape", 1)[0]
    # .7 against .15, each weight .2 on average.
    assert best.low <= (0.7 - 0.15) * 0.2 <= best.high and best.low > 0
    assert "concept 5" in found.table("ape") and "pairs tested" in str(found)
    assert found.as_dict()["classes"]["cat"]["under"][0]["text"] == "concept 7"


def test_nothing_is_found_where_nothing_is():
    """Without any effect every discovery is false, so at most 5 % of the runs may report one."""
    rng = np.random.default_rng(2)
    alarms = sum(
        (class_lift(coins(rng, 300, _prevalence(40)), LABELS, names(40), n_boot=20).q <= 0.05).any() for _ in range(60)
    )
    assert alarms <= stats.binom.ppf(0.999, 60, 0.05)


def test_intervals_cover_the_truth():
    """400 concepts with the same truth are 400 repetitions."""
    w = coins(np.random.default_rng(3), 300, _prevalence(400, [("bee", slice(None), 0.4)]))
    found = class_lift(w, LABELS, names(400), n_boot=300)
    truth = 0.2 * np.array([0.15 - (90 * 0.4 + 150 * 0.15) / 240, 0.4 - 0.15, 0.15 - (60 * 0.15 + 90 * 0.4) / 150])
    covered = ((found.low <= truth[:, None]) & (found.high >= truth[:, None])).mean(1)
    # Classes of 60 to 150 images cost the percentile bootstrap about 1.5 %; three sd of 400 trials are 3.6 %.
    assert (covered >= 0.90).all() and (covered <= 0.98).all()


def test_rare_concepts_are_not_tested():
    w = coins(np.random.default_rng(4), 300, _prevalence(6)).tolil()
    w[:, 2] = 0
    w[:4, 2] = 0.3
    found = class_lift(w.tocsr(), LABELS, names(6), n_boot=20)
    assert found.concepts.tolist() == [0, 1, 3, 4, 5] and "concept 2" not in found.texts
    with pytest.raises(ValueError, match="No concept has weight in 400 of the 300 images"):
        class_lift(w.tocsr(), LABELS, names(6), min_images=400)


def test_unknown_class_and_order():
    found = class_lift(np.eye(2)[[0, 1] * 10], ["a", "b"] * 10, ["x", "y"], n_boot=20)
    with pytest.raises(ValueError, match="class 'c' is not among the 2 known"):
        found.top("c")
    with pytest.raises(ValueError, match="Cannot sort by 'p'"):
        found.top("a", by="p")


def test_intervals_can_be_left_out():
    w = coins(np.random.default_rng(5), 300, _prevalence(6))
    found = class_lift(w, LABELS, names(6), n_boot=0)
    assert np.isnan(found.low).all() and (found.q == class_lift(w, LABELS, names(6), n_boot=20).q).all()
    with pytest.raises(ValueError, match="n_boot=5"):
        class_lift(w, LABELS, names(6), n_boot=5)
