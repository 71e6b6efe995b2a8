"""Concepts that a class relies on though they do not belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.splice.audits.inference import benjamini_hochberg
from vlsae.splice.audits.lift import contrast
from vlsae.splice.audits.table import (
    ROWS_SHOWN,
    aligned,
    checked_weights,
    class_sums,
    labels_of,
    plain,
    position,
)

DEFINITIONS = {
    "importance": "coefficient x mean weight in the class: its mean contribution to the class's logit, if positive",
    "association": "P(concept | class) x log2(lift): its term of the divergence of class from rest in bits, if positive",
    "misfit": "1 - cosine of the concept's and the class's text embeddings, in [0, 2]",
    "gap": "largest minus smallest prevalence between the groups of the class",
    "score": "product of the factors",
}


@dataclass(frozen=True)
class SpuriousRow:
    """One suspicious pair; `gap` is None where no groups were given."""

    label: Any
    text: str
    score: float
    association: float
    misfit: float
    gap: float | None
    prevalence: float
    prevalence_rest: float
    q: float
    n_present: int


@dataclass(frozen=True)
class SpuriousRanking:
    """All pairs of a class and a concept with a positive score, most suspicious first."""

    rows: tuple[SpuriousRow, ...]
    n: int
    sizes: dict[Any, int]
    first_factor: str
    min_images: int

    def top(self, label: Any = None, n: int = 10) -> list[SpuriousRow]:
        """The first rows, of one class where it is given."""
        if label is not None:
            position(label, list(self.sizes), "class")
        return [row for row in self.rows if label is None or row.label == label][:n]

    def table(self, n: int = ROWS_SHOWN) -> str:
        """The top as text."""
        head = ["class", "concept", "score", self.first_factor, "misfit", "gap", "in class", "in rest", "images"]
        rows = [
            (str(r.label), r.text, r.score, r.association, r.misfit, "-" if r.gap is None else r.gap,
             r.prevalence, r.prevalence_rest, r.n_present)
            for r in self.top(n=n)
        ]  # fmt: skip
        return f"{self.n} images, {len(self.sizes)} classes; score = {self.first_factor} x misfit x gap\n" + (
            aligned(head, rows)
            if rows
            else "no concept is associated with a class and, with groups, seen in two of its groups"
        )

    def __str__(self) -> str:
        return self.table()

    def as_dict(self, n: int = 50) -> dict[str, Any]:
        """What JSON holds."""
        return plain({"n": self.n, "sizes": self.sizes, "first_factor": self.first_factor, "definitions": DEFINITIONS,
                      "min_images": self.min_images, "rows": [asdict(r) for r in self.top(n=n)]})  # fmt: skip


def rank_spurious(
    weights: Any,
    labels: Iterable[Any],
    texts: Sequence[str],
    concept_embeddings: Any,
    class_embeddings: Any,
    *,
    groups: Iterable[Any] | None = None,
    coefficients: Any = None,
    centre: bool = True,
    min_images: int = 5,
    fdr: float = 0.05,
) -> SpuriousRanking:
    """Rank concepts by association with a class x misfit with its text x gap between groups.

    `score(c, j) = a(c, j) (1 - cos(t_j, t_c)) g(c, j)`: a concept that goes with a class, or that a classifier uses
    for it, is suspicious as far as its text is far from the class's own and its presence differs between groups.
    The product is in the spirit of "importance x semantic misfit" (arXiv 2505.20229); the test, the lift and the
    groups are this function's.

    Args:
        weights: `[N, K]` sparse, >= 0.
        labels: one an image, at least two different ones.
        texts: K concepts.
        concept_embeddings: `[K, d]` text embeddings of the concepts.
        class_embeddings: `[C, d]` text embeddings of the classes in sorted order of the labels.
        groups: one an image, such as the background; without them the third factor is left out.
        coefficients: `[C, K]` of a classifier on the weights, such as `ConceptClassifier.coef`; without them the
            first factor is the association in the data.
        centre: subtract the concepts' mean embedding first. CLIP texts lie in a narrow cone, where all cosines are
            alike without this.
        min_images: images a concept must have, and a group of a class must have to count.
        fdr: without coefficients, pairs whose prevalence does not differ at this rate are left out.

    Returns:
        The ranking.

    Raises:
        ValueError: for arrays that do not fit, or are not finite.

    Example:
        >>> w = np.zeros((80, 3)); w[:40, 0] = 0.3; w[40:, 1] = 0.3; w[:35, 2] = 0.2
        >>> found = rank_spurious(w, ["dog"] * 40 + ["cat"] * 40, ["puppy", "kitten", "grass"],
        ...                       np.eye(3), [[0, 1, 0], [1, 0, 0]], groups=[0] * 35 + [1] * 10 + [0] * 35)
        >>> [row.text for row in found.top("dog", 1)]
        ['grass']
    """
    w = checked_weights(weights, texts)
    names, numbers = labels_of(labels, w.shape[0])
    misfit = _misfit(concept_embeddings, class_embeddings, (len(names), w.shape[1]), centre)
    sizes = np.bincount(numbers)
    sums, count = class_sums(w, numbers, len(names))
    prevalence_rest = (count.sum(0) - count) / (w.shape[0] - sizes)[:, None]
    enough = count.sum(0) >= min_images
    q = np.ones(count.shape)
    lift, p = contrast(count, sizes)
    q[:, enough] = benjamini_hochberg(p[:, enough])
    if coefficients is None:
        first = np.where(q <= fdr, count / sizes[:, None] * np.log2(lift), 0.0)
    else:
        first = _dense(coefficients, count.shape, "coefficients") * sums / sizes[:, None]
    first = np.where(enough, np.maximum(first, 0.0), 0.0)
    gap = None if groups is None else _gap(w, numbers, groups, len(names), min_images)
    score = first * misfit * (1.0 if gap is None else gap)
    order = np.argsort(-score, axis=None, kind="stable")[: int((score > 0).sum())]
    rows = tuple(
        SpuriousRow(
            names[c], texts[j], float(score[c, j]), float(first[c, j]), float(misfit[c, j]),
            None if gap is None else float(gap[c, j]), float(count[c, j] / sizes[c]),
            float(prevalence_rest[c, j]), float(q[c, j]), int(count[c, j]),
        )
        for c, j in zip(*np.unravel_index(order, score.shape))
    )  # fmt: skip
    what = "association" if coefficients is None else "importance"
    return SpuriousRanking(rows, w.shape[0], dict(zip(names, sizes.tolist())), what, min_images)


def _dense(values: Any, shape: tuple[int, int], what: str) -> np.ndarray:
    found = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    if found.shape != shape or not np.isfinite(found).all():
        raise ValueError(
            f"The {what} have shape {found.shape}, {int((~np.isfinite(found)).sum())} values not finite; expected "
            f"{shape} finite ones, in the sorted order of the labels and the order of the texts. Line them up."
        )
    return found


def _misfit(concepts: Any, classes: Any, shape: tuple[int, int], centre: bool) -> np.ndarray:
    width = np.shape(concepts)[-1] if np.ndim(concepts) == 2 else 0
    t = _dense(concepts, (shape[1], width), "concept embeddings")
    c = _dense(classes, (shape[0], width), "class embeddings")
    t, c = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (t, c))
    if centre:
        middle = t.mean(0)
        t, c = t - middle, c - middle
    norms = np.linalg.norm(c, axis=1)[:, None] * np.linalg.norm(t, axis=1)
    return np.clip(1.0 - (c @ t.T) / np.maximum(norms, 1e-12), 0.0, 2.0)


def _gap(w: sparse.csr_matrix, numbers: np.ndarray, groups: Iterable[Any], classes: int, least: int) -> np.ndarray:
    kinds, group_numbers = labels_of(groups, w.shape[0], "groups")
    cell = numbers * len(kinds) + group_numbers
    sizes = np.bincount(cell, minlength=classes * len(kinds))
    count = class_sums(w, cell, classes * len(kinds))[1]
    share = (count / np.maximum(sizes, 1)[:, None]).reshape(classes, len(kinds), -1)
    enough = (sizes >= least).reshape(classes, len(kinds), 1)
    # A class in which fewer than two groups can be compared shows no gap.
    high, low = np.where(enough, share, -1.0).max(1), np.where(enough, share, 2.0).min(1)
    return np.where(enough.sum(1) >= 2, high - low, 0.0)
