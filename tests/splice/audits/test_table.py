"""Checks that every audit makes before it starts."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from vlsae.splice.audits import class_lift, drift, fit_path, group_accuracy, profile, rank_spurious, summarise
from vlsae.splice.audits.table import aligned, checked_weights, labels_of, plain, position

TEXTS = ["dog", "red", "grass"]
GOOD = np.array([[0.1, 0.0, 0.2], [0.0, 0.3, 0.0], [0.2, 0.1, 0.0], [0.0, 0.0, 0.4]])


def _with(value):
    weights = GOOD.copy()
    weights[2, 1] = value
    return weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_bad_weights_are_located(value):
    with pytest.raises(ValueError, match=r"image 2, concept 1 is .*expected finite weights >= 0"):
        checked_weights(sparse.csr_matrix(_with(value)), TEXTS)


@pytest.mark.parametrize(
    "texts, message",
    [(["dog", "red"], "2 concept texts were given for weights of 3"), (["dog", "red", "dog"], "'dog' is there twice"),
     ("dog", "expected one a column")],
)  # fmt: skip
def test_bad_texts(texts, message):
    with pytest.raises(ValueError, match=message):
        checked_weights(GOOD, texts)


@pytest.mark.parametrize("weights", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 3, 1))])
def test_bad_shapes(weights):
    with pytest.raises(ValueError, match="expected \\[images, concepts\\]"):
        checked_weights(weights)


def test_stored_zeros_and_duplicates_are_cleaned_without_touching_the_argument():
    stored = sparse.csr_matrix((np.array([0.5, 0.0, 0.25, 0.25]), ([0, 0, 1, 1], [0, 1, 2, 2])), (2, 3))
    messy = sparse.csr_matrix((np.array([0.5, 0.0, 0.25, 0.25]), np.array([0, 1, 2, 2]), np.array([0, 2, 4])), (2, 3))
    before = messy.data.copy()
    clean = checked_weights(messy)
    np.testing.assert_array_equal(clean.toarray(), [[0.5, 0, 0], [0, 0, 0.5]])
    assert clean.nnz == 2 and checked_weights(stored).nnz == 2
    np.testing.assert_array_equal(messy.data, before)
    assert messy.nnz == 4


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.coo_array, np.asarray])
def test_every_kind_of_matrix_gives_the_same(make, kind):
    found = summarise(make(GOOD.astype(kind)), TEXTS, n_boot=20)
    # Single precision keeps 24 bits, 6e-8; the sums are taken in double.
    np.testing.assert_allclose(found.mean, GOOD.mean(0), rtol=1e-7)


@pytest.mark.parametrize(
    "labels, message",
    [([1, 2], r"shape \(2,\) for 4 images"), ([1, 1, 1, 1], r"1 distinct value\(s\), \[1\]"),
     ([1.0, 2.0, np.nan, 1.0], "missing"), (["a", None, "b", "a"], "missing")],
)  # fmt: skip
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        labels_of(labels, 4)
    with pytest.raises(ValueError, match=message):
        class_lift(GOOD, labels, TEXTS, min_images=1)
    with pytest.raises(ValueError, match=message):
        fit_path(GOOD, labels, TEXTS)
    with pytest.raises(ValueError, match=message):
        rank_spurious(GOOD, labels, TEXTS, np.eye(3), np.eye(3)[:2])


def test_unknown_names_come_with_near_ones():
    with pytest.raises(ValueError, match="'gras' is not among the 3 known; near it: 'grass'"):
        position("gras", TEXTS)


def test_results_are_json_and_readable():
    w = np.tile(GOOD, (10, 1))
    labels, groups = ["a", "b", "a", "b"] * 10, [0, 0, 1, 1] * 10
    embeddings = np.eye(3)
    results = [
        summarise(w, TEXTS),
        class_lift(w, labels, TEXTS),
        profile(w, TEXTS),
        drift(profile(w, TEXTS), w, TEXTS),
        rank_spurious(w, labels, TEXTS, embeddings, embeddings[:2], groups=groups),
        fit_path(w, labels, TEXTS),
        fit_path(w, labels, TEXTS).choose(),
        fit_path(w, labels, TEXTS).choose().explain(w[0]),
        group_accuracy(labels, labels, groups),
    ]
    for result in results:
        json.dumps(result.as_dict(), allow_nan=False)
        assert len(str(result).splitlines()) <= 14, result


def test_plain_and_aligned():
    assert plain({1: (np.float32(0.5), np.int64(2), float("nan"))}) == {"1": [0.5, 2, None]}
    assert aligned(["a", "b"], [["x", 1.23456], ["longer", 10]]).splitlines() == [
        "a          b",
        "x       1.23",
        "longer    10",
    ]


def test_solvers_and_scikit_learn_are_not_imported_before_they_are_needed():
    code = "import sys, vlsae.splice.audits; print({'sklearn', 'numba', 'spams', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
