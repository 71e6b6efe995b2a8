"""Trees scored by hand, and the two ends of the scale."""

import numpy as np
import pytest

from vlsae.metrics.tree_recovery import ancestors, induced_parents, random_forest, tree_distances, tree_recovery

# 0 over 1 and 2; 1 over 3 and 4; 5 over 6
TRUE = np.array([-1, 0, 0, 1, 1, -1, 5])


def values(*args, **options):
    return {name: metric.value for name, metric in tree_recovery(*args, **options).items()}


def test_the_true_tree_has_every_score_one_and_random_ones_do_not():
    found = tree_recovery(TRUE, TRUE)
    assert [metric.value for metric in found.values()] == pytest.approx([1, 1, 1, 1])
    assert [metric.n for metric in found.values()] == [7, 7, 7, 21]
    assert all(baseline < 0.5 for metric in found.values() for baseline in metric.baselines.values())


def test_forests_that_say_nothing():
    """No edges: no pairs and equal distances. A star under node 6: six pairs, of which none is true."""
    assert list(values(np.full(7, -1), TRUE).values()) == [0, 0, 0, 0]
    star = np.array([6] * 6 + [-1])
    found = tree_recovery(star, TRUE)
    assert found["ancestor_recall"].value == found["ancestor_precision"].value == 0
    assert found["ancestor_precision"].n == 6


def test_by_hand():
    """3 hangs under 2 instead of 1, 6 alone: pairs 10 20 31 30 41 40 65 are true, 10 20 32 30 41 40 claimed: 5 right."""
    found = values(np.array([-1, 0, 0, 2, 1, -1, -1]), TRUE)
    assert found["ancestor_precision"] == pytest.approx(5 / 6)
    assert found["ancestor_recall"] == pytest.approx(5 / 7)
    assert found["ancestor_f1"] == pytest.approx(10 / 13)
    assert 0 < found["tree_distance"] < 1


def test_distances_by_hand_and_their_correlation_by_scipy():
    from scipy.stats import spearmanr

    assert tree_distances(TRUE)[3].tolist() == [2, 1, 3, 0, 2, 4, 5]
    other = np.array([-1, 0, 0, 2, 1, -1, -1])
    upper = np.triu_indices(7, 1)
    expected = spearmanr(tree_distances(other)[upper], tree_distances(TRUE)[upper]).statistic
    assert values(other, TRUE)["tree_distance"] == pytest.approx(expected)


def test_latents_between_matched_ones_are_passed_over():
    """Nodes 0 to 6 are latents 9 to 3; latent 1 stands between 9 and 8, latent 0 above all."""
    matched = np.arange(9, 2, -1)
    parent = np.full(10, -1)
    parent[matched] = np.where(TRUE >= 0, matched[TRUE], 0)
    parent[8], parent[1] = 1, 9
    assert (induced_parents(parent, matched) == TRUE).all()
    assert list(values(parent, TRUE, matched).values()) == pytest.approx([1, 1, 1, 1])


def test_random_forests_have_their_edges_and_no_circle():
    rng = np.random.default_rng(0)
    for _ in range(50):
        parent = random_forest(8, 5, rng)
        assert (parent >= 0).sum() == 5
        assert not np.diag(ancestors(parent)).any()


@pytest.mark.parametrize(
    ("parent", "true_parent", "matched", "match"),
    [
        (TRUE, np.full(7, -1), None, "has no edges"),
        (TRUE, TRUE, np.zeros(7, int), "1 of them different, for 7 true nodes"),
        (TRUE, TRUE, np.arange(7) + 1, "lie in 1 to 7; there are 7"),
        (np.array([1, 0, -1, -1, -1, -1, -1]), TRUE, None, "node 0 go in a circle"),
        (TRUE, np.array([-1, 9, 0, 0, 0, 0, 0]), None, "expected -1 to 6"),
    ],
)
def test_what_does_not_fit_is_refused(parent, true_parent, matched, match):
    with pytest.raises(ValueError, match=match):
        tree_recovery(parent, true_parent, matched)
