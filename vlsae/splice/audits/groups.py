"""Accuracy per class and group, to see whom a classifier fails before and after a concept is edited."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlsae.splice.audits.inference import wilson
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, labels_of, plain

DEFINITION = (
    "accuracy: share of a cell's images whose predicted label is the right one; low, high: Wilson interval; "
    "worst: the cell with the lowest accuracy; average: over all images; balanced: mean over the cells"
)


@dataclass(frozen=True)
class GroupCell:
    """The images of one class in one group."""

    label: Any
    group: Any
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy in every cell of class x group that has images."""

    cells: tuple[GroupCell, ...]
    average: float
    n: int
    level: float

    @property
    def worst(self) -> GroupCell:
        """The cell with the lowest accuracy; of equals the one with most images."""
        return min(self.cells, key=lambda c: (c.accuracy, -c.n))

    @property
    def balanced(self) -> float:
        """Mean accuracy over the cells."""
        return float(np.mean([c.accuracy for c in self.cells]))

    def table(self, n: int = ROWS_SHOWN) -> str:
        """Cells as text, worst first."""
        ordered = sorted(self.cells, key=lambda c: (c.accuracy, -c.n))[:n]
        rows = [(str(c.label), str(c.group), c.accuracy, f"[{c.low:.3f}, {c.high:.3f}]", c.n) for c in ordered]
        first = f"average {self.average:.3f}, worst {self.worst.accuracy:.3f}, {self.n} images\n"
        return first + aligned(["class", "group", "accuracy", f"{self.level:.0%} interval", "images"], rows)

    __str__ = table

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return plain({"n": self.n, "average": self.average, "balanced": self.balanced, "level": self.level,
                      "worst": asdict(self.worst), "cells": [asdict(c) for c in self.cells],
                      "definition": DEFINITION})  # fmt: skip


def group_accuracy(
    predicted: Iterable[Any], labels: Iterable[Any], groups: Iterable[Any], *, level: float = 0.95
) -> GroupAccuracy:
    """Accuracy of predictions in every (class, group), as in the worst-group evaluation of Sagawa et al. 2020.

    `acc(c, g) = |{i : y_i = c, g_i = g, yhat_i = c}| / |{i : y_i = c, g_i = g}|` (arXiv 1911.08731).

    Args:
        predicted, labels: one an image, of the same type.
        groups: one an image, such as the background of a bird.
        level: coverage of the intervals, in (0, 1).

    Returns:
        The accuracies; a combination without images has no cell.

    Raises:
        ValueError: for unequal lengths, missing values, or predictions of another type than the labels.

    Example:
        >>> found = group_accuracy(["a", "a", "b"], ["a", "b", "b"], ["land", "land", "water"])
        >>> found.worst.label, found.worst.group, found.worst.n
        ('b', 'land', 1)
    """
    if not 0 < level < 1:
        raise ValueError(f"The level {level} was given; expected a coverage between 0 and 1, such as 0.95.")
    predicted, labels = list(predicted), list(labels)
    if not labels:
        raise ValueError("No image was given; expected at least one label, prediction and group.")
    names, numbers = labels_of(labels, len(labels), least=1)
    guesses, _ = labels_of(predicted, len(labels), "predictions", least=1)
    if isinstance(names[0], str) != isinstance(guesses[0], str):
        raise ValueError(
            f"The labels are such as {names[0]!r} and the predictions such as {guesses[0]!r}, which can never agree; "
            "expected both as strings or both as numbers."
        )
    kinds, kind_numbers = labels_of(groups, len(labels), "groups", least=1)
    right = np.asarray(predicted) == np.asarray(labels)
    shape = (len(names), len(kinds))
    n = np.bincount(numbers * shape[1] + kind_numbers, minlength=shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(numbers * shape[1] + kind_numbers, right, shape[0] * shape[1]).reshape(shape)
    low, high = wilson(hits, np.maximum(n, 1), level)
    cells = tuple(
        GroupCell(names[c], kinds[g], float(hits[c, g] / n[c, g]), float(low[c, g]), float(high[c, g]), int(n[c, g]))
        for c, g in np.argwhere(n)
    )
    return GroupAccuracy(cells, float(right.mean()), len(labels), level)
