"""What a set of images is made of: mean weight and prevalence of every concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlsae.splice.audits.inference import check_resampling, percentiles, resampled_sums, wilson
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_weights, plain, presence

DEFINITION = (
    "mean: average weight over all images, absent counting as 0; prevalence: share of images with weight > 0; "
    "mean_present: average over the images that have it; low, high: percentile bootstrap of the mean over images"
)


@dataclass(frozen=True)
class ConceptRow:
    """One concept of a summary."""

    text: str
    mean: float
    low: float
    high: float
    prevalence: float
    mean_present: float
    n_present: int


@dataclass(frozen=True, eq=False)
class ConceptSummary:
    """Concepts of a set of images.

    Attributes:
        texts: K concepts.
        n: images.
        mean: `[K]` mean weight, with its interval `low`, `high` at `level`.
        count: `[K]` images that have the concept.
        mean_present: `[K]` mean weight among those, NaN where there are none.
    """

    texts: tuple[str, ...]
    n: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    mean_present: np.ndarray
    level: float
    n_boot: int

    @property
    def prevalence(self) -> np.ndarray:
        """`[K]` share of images with the concept."""
        return self.count / self.n

    def prevalence_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Wilson interval of the prevalence at `level`, two arrays `[K]`."""
        return wilson(self.count, self.n, self.level)

    def top(self, n: int = 10, by: str = "mean") -> list[ConceptRow]:
        """The `n` concepts with the largest "mean", "prevalence" or "mean_present"; absent ones are left out."""
        if by not in ("mean", "prevalence", "mean_present"):
            raise ValueError(f"Cannot sort by {by!r}; use 'mean', 'prevalence' or 'mean_present'.")
        order = np.argsort(-np.nan_to_num(getattr(self, by)), kind="stable")
        return [self._row(i) for i in order[:n] if self.count[i]]

    def _row(self, i: int) -> ConceptRow:
        columns = (self.mean, self.low, self.high, self.prevalence, self.mean_present)
        return ConceptRow(self.texts[i], *(float(c[i]) for c in columns), int(self.count[i]))

    def table(self, n: int = ROWS_SHOWN, by: str = "mean") -> str:
        """The top as text."""
        head = ["concept", "mean", f"{self.level:.0%} interval", "prevalence", "where present", "images"]
        rows = [
            (r.text, r.mean, f"[{r.low:.3g}, {r.high:.3g}]", r.prevalence, r.mean_present, r.n_present)
            for r in self.top(n, by)
        ]
        return f"{self.n} images, {int((self.count > 0).sum())} of {len(self.texts)} concepts seen\n" + aligned(
            head, rows
        )

    __str__ = table

    def as_dict(self, n: int | None = None) -> dict[str, Any]:
        """What JSON holds: the `n` largest concepts (all that were seen where None), with the definition."""
        rows = [asdict(row) for row in self.top(len(self.texts) if n is None else n)]
        return plain({"n": self.n, "concepts": len(self.texts), "level": self.level, "n_boot": self.n_boot,
                      "definition": DEFINITION, "rows": rows})  # fmt: skip


def summarise(
    weights: Any, texts: Sequence[str], *, n_boot: int = 500, level: float = 0.95, seed: int = 0
) -> ConceptSummary:
    """Mean weight and prevalence of every concept, with bootstrap intervals over images.

    `mean_j = 1/N sum_i w_ij`, as in section 5 of SpLiCE (Bhalla et al. 2024, arXiv 2402.10376). Intervals of concepts
    that only a handful of images have are too narrow, as those of any percentile bootstrap: look at `n_present`.

    Args:
        weights: `[N, K]` sparse, >= 0.
        texts: K concepts.
        n_boot: resamples, at least 20.
        level: coverage of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        The summary.

    Raises:
        ValueError: for weights and texts that do not fit, or settings out of range.

    Example:
        >>> found = summarise([[0.2, 0.0], [0.4, 0.1]], ["dog", "grass"])
        >>> [(row.text, round(row.mean, 2), row.prevalence) for row in found.top(2)]
        [('dog', 0.3, 1.0), ('grass', 0.05, 0.5)]
    """
    check_resampling(n_boot, level)
    w = checked_weights(weights, texts)
    n, k = w.shape
    total = np.bincount(w.indices, w.data, k)
    count = np.bincount(presence(w).indices, minlength=k)
    seen = np.flatnonzero(count)
    low, high = np.zeros(k), np.zeros(k)
    if seen.size:
        samples = resampled_sums(w[:, seen], n_boot, np.random.default_rng(seed)) / n
        low[seen], high[seen] = percentiles(samples, level)
    present = np.divide(total, count, out=np.full(k, np.nan), where=count > 0)
    return ConceptSummary(tuple(texts), n, total / n, low, high, count, present, level, n_boot)
