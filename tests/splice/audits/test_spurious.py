"""Spurious concepts: a planted confounder comes first, what belongs to the class does not."""

import numpy as np
import pytest

from tests.splice.audits.planted import coins
from vlsae.splice.audits import fit_path, rank_spurious

K, D = 60, 40
TEXTS = ["hump", "pouch", "desert", "outdoors", *(f"noise {i}" for i in range(K - 4))]
HUMP, POUCH, DESERT, OUTDOORS = range(4)


def _world(seed, n=400):
    """Camels have humps and mostly stand in the desert, kangaroos have pouches; outdoors is everywhere."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["camel", "kangaroo"], n // 2)
    camel = labels == "camel"
    place = rng.random(n) < np.where(camel, 0.85, 0.15)
    p = np.full((n, K), 0.1)
    p[:, HUMP], p[:, POUCH] = np.where(camel, 0.9, 0.03), np.where(camel, 0.03, 0.9)
    p[:, DESERT], p[:, OUTDOORS] = np.where(place, 0.95, 0.02), 0.9
    return coins(rng, n, p), labels, np.where(place, "sand", "grass")


def _texts(seed):
    """Embeddings in a narrow cone; the hump lies beside the camel and the pouch beside the kangaroo."""
    rng = np.random.default_rng(seed)
    concepts = rng.standard_normal((K, D))
    classes = concepts[[HUMP, POUCH]] + 0.5 * rng.standard_normal((2, D))
    cone = 5 * rng.standard_normal(D)
    return concepts + cone, classes + cone


@pytest.mark.parametrize("seed", range(5))
def test_the_confounder_comes_first(seed):
    w, labels, place = _world(seed)
    concepts, classes = _texts(seed)
    found = rank_spurious(w, labels, TEXTS, concepts, classes, groups=place)
    assert found.top("camel", 1)[0].text == "desert" and found.rows[0].text == "desert"
    # The gap of a concept that does not depend on the place is chance: two standard errors of 170 against 30 images.
    assert all(r.score < 0.25 * found.rows[0].score for r in found.rows if r.text in ("hump", "pouch", "outdoors"))


@pytest.mark.parametrize("seed", range(5))
def test_also_without_groups_and_by_what_a_classifier_uses(seed):
    w, labels, place = _world(seed)
    concepts, classes = _texts(seed)
    assert rank_spurious(w, labels, TEXTS, concepts, classes).top("camel", 1)[0].text == "desert"
    model = fit_path(w, labels, TEXTS).points[3].classifier
    found = rank_spurious(w, labels, TEXTS, concepts, classes, groups=place, coefficients=model.coef)
    assert found.first_factor == "importance" and found.top("camel", 1)[0].text == "desert"


def test_the_factors_are_what_they_say():
    w, labels, place = _world(7)
    concepts, classes = _texts(7)
    coefficients = np.random.default_rng(0).standard_normal((2, K))
    dense = w.toarray()
    found = rank_spurious(w, labels, TEXTS, concepts, classes, groups=place, coefficients=coefficients, centre=False)
    plain = rank_spurious(w, labels, TEXTS, concepts, classes)
    for row in (*found.rows[:10], *found.rows[-3:]):
        c, j = ["camel", "kangaroo"].index(row.label), TEXTS.index(row.text)
        inside = labels == row.label
        t, u = concepts[j], classes[c]
        there = dense[:, j] > 0
        shares = [there[inside & (place == g)].mean() for g in ("sand", "grass")]
        assert row.association == pytest.approx(coefficients[c, j] * dense[inside, j].mean(), rel=1e-9)
        assert row.misfit == pytest.approx(1 - t @ u / np.linalg.norm(t) / np.linalg.norm(u), rel=1e-9)
        assert row.gap == pytest.approx(max(shares) - min(shares), rel=1e-9)
        assert row.score == pytest.approx(row.association * row.misfit * row.gap, rel=1e-9)
        assert row.prevalence == there[inside].mean() and row.prevalence_rest == there[~inside].mean()
    assert plain.rows[0].gap is None and len(plain.rows) < 10  # only what differs between the classes


def test_centring_widens_the_cone():
    """Uncentred, all cosines of the cone are near one and the misfit says little."""
    w, labels, _ = _world(8)
    concepts, classes = _texts(8)
    misfit = {
        centre: {r.text: r.misfit for r in rank_spurious(w, labels, TEXTS, concepts, classes, centre=centre).rows}
        for centre in (True, False)
    }
    assert misfit[True]["desert"] > 0.6 and misfit[True]["hump"] < 0.3
    assert max(misfit[False].values()) < 0.2


def test_groups_too_small_show_no_gap():
    w = np.zeros((40, 2))
    w[:20, 0], w[20:, 1] = 0.2, 0.2
    labels, groups = ["a"] * 20 + ["b"] * 20, ["x"] * 17 + ["y"] * 3 + ["x"] * 20
    w[17:20, 0] = 0
    assert rank_spurious(w, labels, ["p", "q"], np.eye(2), np.eye(2)[::-1], groups=groups).rows == ()
    assert len(rank_spurious(w, labels, ["p", "q"], np.eye(2), np.eye(2)[::-1], groups=groups, min_images=3).rows) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"concept_embeddings": np.ones((K - 1, D))}, "concept embeddings have shape"),
        ({"class_embeddings": np.ones((3, D))}, "class embeddings have shape"),
        ({"class_embeddings": np.full((2, D), np.nan)}, "80 values not finite"),
        ({"coefficients": np.ones((3, K))}, "coefficients have shape"),
        ({"groups": [0] * 400}, "1 distinct value"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    w, labels, _ = _world(9)
    concepts, classes = _texts(9)
    given = {"concept_embeddings": concepts, "class_embeddings": classes, **change}
    with pytest.raises(ValueError, match=message):
        rank_spurious(w, labels, TEXTS, **given)
