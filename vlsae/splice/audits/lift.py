"""Which concepts a class has more of than the others, with tests and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from vlsae.splice.audits.inference import (
    benjamini_hochberg,
    check_resampling,
    fisher_exact,
    percentiles,
    resampled_sums,
)
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_weights, class_sums, labels_of, plain, position

PSEUDO_COUNT = 0.5
DEFINITION = (
    "lift: (a + .5)/(n + 1) over (b + .5)/(m + 1), a of the class's n images and b of the other m having the concept; "
    "difference: mean weight in the class minus in the rest, low and high by stratified percentile bootstrap; "
    "p: two-sided Fisher's exact test of the prevalences; q: Benjamini-Hochberg over all tested pairs"
)


@dataclass(frozen=True)
class LiftRow:
    """One concept in one class, against all other classes."""

    label: Any
    text: str
    lift: float
    prevalence: float
    prevalence_rest: float
    difference: float
    low: float
    high: float
    p: float
    q: float
    n_present: int


@dataclass(frozen=True, eq=False)
class ClassLift:
    """Every class against the others, for the concepts with enough images.

    Attributes:
        classes: C labels, with `sizes [C]` images each.
        texts: T tested concepts, those with at least `min_images` images.
        concepts: `[T]` their column in the weights.
        count: `[C, T]` images of the class with the concept.
        lift, difference, low, high, p, q: `[C, T]`, as in DEFINITION.
    """

    classes: tuple[Any, ...]
    sizes: np.ndarray
    texts: tuple[str, ...]
    concepts: np.ndarray
    count: np.ndarray
    lift: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray
    min_images: int
    level: float
    n_boot: int

    @property
    def n(self) -> int:
        """Images in all."""
        return int(self.sizes.sum())

    @property
    def prevalence(self) -> np.ndarray:
        """`[C, T]` share of the class's images with the concept."""
        return self.count / self.sizes[:, None]

    @property
    def prevalence_rest(self) -> np.ndarray:
        """`[C, T]` share of all other images with the concept."""
        return (self.count.sum(0) - self.count) / (self.n - self.sizes)[:, None]

    def top(
        self, label: Any, n: int = 10, *, by: str = "lift", fdr: float = 0.05, under: bool = False
    ) -> list[LiftRow]:
        """Concepts that a class has more of, or less of with `under`.

        Args:
            label: the class.
            n: how many at most.
            by: "lift", or "difference" of the mean weights.
            fdr: keep pairs with q at or below this.
            under: those the class has less of, lowest first.

        Raises:
            ValueError: for an unknown class or order.
        """
        if by not in ("lift", "difference"):
            raise ValueError(f"Cannot sort by {by!r}; use 'lift' or 'difference'.")
        c = position(label, self.classes, "class")
        sign = -1 if under else 1
        side = sign * (np.log(self.lift[c]) if by == "lift" else self.difference[c])
        order = np.argsort(-side, kind="stable")
        return [self._row(c, t) for t in order if side[t] > 0 and self.q[c, t] <= fdr][:n]

    def _row(self, c: int, t: int) -> LiftRow:
        of = (self.lift, self.prevalence, self.prevalence_rest, self.difference, self.low, self.high, self.p, self.q)
        return LiftRow(self.classes[c], self.texts[t], *(float(v[c, t]) for v in of), int(self.count[c, t]))

    def table(self, label: Any = None, n: int = ROWS_SHOWN) -> str:
        """The top of one class as text, or the best few of every class."""
        chosen = self.classes if label is None else (label,)
        rows = [row for c in chosen for row in self.top(c, max(1, n // len(chosen)))][:n]
        head = [
            "class",
            "concept",
            "lift",
            "in class",
            "in rest",
            "difference",
            f"{self.level:.0%} interval",
            "q",
            "images",
        ]
        lines = [
            (str(r.label), r.text, r.lift, r.prevalence, r.prevalence_rest, r.difference,
             f"[{r.low:.3g}, {r.high:.3g}]", r.q, r.n_present)
            for r in rows
        ]  # fmt: skip
        first = f"{self.n} images, {len(self.classes)} classes, {self.p.size} pairs tested\n"
        return first + (aligned(head, lines) if lines else "no concept stands out at q <= 0.05")

    def __str__(self) -> str:
        return self.table()

    def as_dict(self, n: int = 20, fdr: float = 0.05) -> dict[str, Any]:
        """What JSON holds: the first `n` concepts a class, more and less frequent ones."""
        rows = {str(c): {"over": [asdict(r) for r in self.top(c, n, fdr=fdr)],
                         "under": [asdict(r) for r in self.top(c, n, fdr=fdr, under=True)]}
                for c in self.classes}  # fmt: skip
        return plain({"n": self.n, "sizes": dict(zip(map(str, self.classes), self.sizes)), "tested": self.p.size,
                      "min_images": self.min_images, "pseudo_count": PSEUDO_COUNT, "level": self.level,
                      "n_boot": self.n_boot, "fdr": fdr, "definition": DEFINITION, "classes": rows})  # fmt: skip


def class_lift(
    weights: Any,
    labels: Iterable[Any],
    texts: Sequence[str],
    *,
    min_images: int = 5,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> ClassLift:
    """How much more frequent every concept is in every class than in the rest.

    `lift(c, j) = P(w_j > 0 | c) / P(w_j > 0 | not c)`, half an image added to each side, tested exactly and corrected
    over all pairs. SpLiCE (Bhalla et al. 2024, arXiv 2402.10376) shows the mean weights by class without a test.

    Args:
        weights: `[N, K]` sparse, >= 0.
        labels: one an image, at least two different ones.
        texts: K concepts.
        min_images: concepts that fewer images have, over all classes, are not tested.
        n_boot: resamples within every class, at least 20; 0 leaves the intervals out, which take most of the time.
        level: coverage of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        The comparison.

    Raises:
        ValueError: for weights, labels and texts that do not fit, or when no concept has enough images.

    Example:
        >>> import numpy as np
        >>> w = np.zeros((40, 2)); w[:20, 0] = 0.3; w[::2, 1] = 0.1
        >>> found = class_lift(w, ["dog"] * 20 + ["cat"] * 20, ["collar", "indoors"])
        >>> [(row.text, row.lift) for row in found.top("dog")]
        [('collar', 41.0)]
    """
    if n_boot:
        check_resampling(n_boot, level)
    w = checked_weights(weights, texts)
    names, numbers = labels_of(labels, w.shape[0])
    concepts = np.flatnonzero(np.bincount(w.indices, minlength=w.shape[1]) >= min_images)
    if not concepts.size:
        raise ValueError(
            f"No concept has weight in {min_images} of the {w.shape[0]} images; expected at least one. "
            "Lower min_images, or decompose with a lower penalty."
        )
    w = sparse.csr_matrix(w[:, concepts])
    sizes = np.bincount(numbers)
    sums, count = class_sums(w, numbers, len(names))
    lift, p = contrast(count, sizes)
    difference = sums / sizes[:, None] - (sums.sum(0) - sums) / (w.shape[0] - sizes)[:, None]
    low, high = _intervals(w, numbers, sizes, n_boot, level, seed) if n_boot else np.full((2, *p.shape), np.nan)
    return ClassLift(
        tuple(names), sizes, tuple(texts[i] for i in concepts), concepts, count, lift, difference, low, high, p,
        benjamini_hochberg(p), min_images, level, n_boot,
    )  # fmt: skip


def contrast(count: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lift and p-value of every class against the rest.

    Args:
        count: `[C, T]` images of each class with the concept.
        sizes: `[C]` images of each class.

    Returns:
        Both `[C, T]`, as in DEFINITION.
    """
    n, rest = sizes[:, None], (sizes.sum() - sizes)[:, None]
    count_rest = count.sum(0) - count
    lift = (count + PSEUDO_COUNT) / (n + 1) / ((count_rest + PSEUDO_COUNT) / (rest + 1))
    return lift, fisher_exact(count, n, count_rest, rest)


def _intervals(w: sparse.csr_matrix, numbers: np.ndarray, sizes: np.ndarray, n_boot: int, level: float, seed: int):
    """Bootstrap of the difference of means: every class resampled within itself, so that its size stays."""
    parts = [w[numbers == c] for c in range(len(sizes))]

    def sums(c: int) -> np.ndarray:
        return resampled_sums(parts[c], n_boot, np.random.default_rng([seed, c]))

    # Every class is drawn twice from the same seed: [C, n_boot, K] at once would not fit into memory.
    total = np.zeros((n_boot, w.shape[1]))
    for c in range(len(sizes)):
        total += sums(c)
    low, high = np.empty((2, len(sizes), w.shape[1]))
    for c, size in enumerate(sizes):
        mine = sums(c)
        low[c], high[c] = percentiles(mine / size - (total - mine) / (w.shape[0] - size), level)
    return low, high
