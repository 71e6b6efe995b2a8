"""Accuracy by class and group."""

import numpy as np
import pytest

from vlsae.splice.audits import group_accuracy
from vlsae.splice.audits.inference import wilson


def test_cells_are_counted_by_hand():
    labels = ["bird"] * 4 + ["fish"] * 3
    groups = ["land", "land", "land", "water", "water", "water", "water"]
    predicted = ["bird", "bird", "fish", "fish", "fish", "fish", "bird"]
    found = group_accuracy(predicted, labels, groups)
    cells = {(c.label, c.group): (c.accuracy, c.n) for c in found.cells}
    assert cells == {("bird", "land"): (2 / 3, 3), ("bird", "water"): (0.0, 1), ("fish", "water"): (2 / 3, 3)}
    assert (found.worst.label, found.worst.group) == ("bird", "water")
    assert found.average == 4 / 7 and found.balanced == pytest.approx(4 / 9)
    assert (found.worst.low, found.worst.high) == pytest.approx(wilson(0, 1))
    assert found.table().splitlines()[2].split()[:3] == ["bird", "water", "0"]
    assert found.as_dict()["worst"]["n"] == 1


def test_against_brute_force():
    rng = np.random.default_rng(0)
    labels, groups, predicted = rng.integers(0, 3, 500), rng.integers(0, 4, 500), rng.integers(0, 3, 500)
    for cell in group_accuracy(predicted, labels, groups).cells:
        inside = (labels == cell.label) & (groups == cell.group)
        assert cell.n == inside.sum() and cell.accuracy == (predicted[inside] == cell.label).mean()
        assert cell.low <= cell.accuracy <= cell.high


def test_of_equally_bad_cells_the_larger_is_the_worst():
    found = group_accuracy(["b", "b", "b"], ["a", "a", "a"], [1, 2, 2])
    assert (found.worst.group, found.worst.n) == (2, 2)


@pytest.mark.parametrize(
    "predicted, labels, groups, message",
    [
        ([], [], [], "No image was given"),
        (["a"], ["a", "b"], [0, 0], r"predictions have shape \(1,\) for 2 images"),
        (["a", "b"], ["a", "b"], [0], r"groups have shape \(1,\)"),
        ([0, 1], ["a", "b"], [0, 0], "can never agree"),
        ([0, 1], [0.0, np.nan], [0, 0], "missing"),
    ],
)
def test_what_does_not_fit_is_said(predicted, labels, groups, message):
    with pytest.raises(ValueError, match=message):
        group_accuracy(predicted, labels, groups)


def test_level_is_checked():
    with pytest.raises(ValueError, match="level 95"):
        group_accuracy([1], [1], [1], level=95)
