"""Whether new images still have the concepts of a reference set: for monitoring, with an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import kolmogorov, ndtri

from vlsae.splice.audits.inference import benjamini_hochberg, fisher_exact
from vlsae.splice.audits.reference import Profile, counts_below, profile
from vlsae.splice.audits.table import ROWS_SHOWN, aligned, checked_weights, plain

DEFINITION = (
    "ks: largest difference of the two distribution functions at zero and at the reference's deciles, at most the full "
    "Kolmogorov-Smirnov statistic; psi: population stability index over the same bins, half an image added to each; "
    "p: twice the smaller of Fisher's exact test of the prevalences and the Kolmogorov test of ks; q: "
    "Benjamini-Hochberg over the tested concepts; drifted: q <= fdr and ks >= min_effect"
)


@dataclass(frozen=True)
class DriftRow:
    """One concept, then and now."""

    text: str
    prevalence_before: float
    prevalence_now: float
    mean_before: float
    mean_now: float
    ks: float
    psi: float
    p: float
    q: float
    drifted: bool


@dataclass(frozen=True)
class DriftReport:
    """Comparison of two sets of images.

    Attributes:
        n_before, n_now: images of the reference and the new set.
        rows: tested concepts, smallest q first.
        fdr, min_effect, min_images: what was asked for.
        detectable: change of a prevalence of one half that is found with power .8 if it is the only one.
    """

    n_before: int
    n_now: int
    rows: tuple[DriftRow, ...]
    fdr: float
    min_effect: float
    min_images: int
    detectable: float

    @property
    def drifted(self) -> list[DriftRow]:
        """Concepts that changed, largest effect first."""
        return sorted((row for row in self.rows if row.drifted), key=lambda r: -r.ks)

    @property
    def found(self) -> bool:
        """Whether any concept changed."""
        return any(row.drifted for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 without drift and 1 with it, for a command line; 2 stays free for errors."""
        return int(self.found)

    def table(self, n: int = ROWS_SHOWN) -> str:
        """Verdict and concepts as text."""
        drifted = self.drifted
        first = (
            f"{'DRIFT' if drifted else 'no drift'}: {len(drifted)} of {len(self.rows)} tested concepts changed "
            f"({self.n_before} -> {self.n_now} images, FDR {self.fdr:g}, effect >= {self.min_effect:g}; "
            f"{self._power()})"
        )
        head = ["concept", "prevalence", "now", "mean", "mean now", "KS", "PSI", "q"]
        rows = [
            (r.text, r.prevalence_before, r.prevalence_now, r.mean_before, r.mean_now, r.ks, r.psi, r.q)
            for r in (drifted or self.rows)[:n]
        ]
        return first + ("\n" + aligned(head, rows) if rows else "")

    def __str__(self) -> str:
        return self.table()

    def _power(self) -> str:
        if not np.isfinite(self.detectable):
            return "too few images to find any change with power .8"
        return f"a change of {self.detectable:.3f} of a prevalence of one half would be found with power .8"

    def as_dict(self, n: int = 50) -> dict[str, Any]:
        """What JSON holds: the verdict, and the `n` concepts with the smallest q beside all that drifted."""
        rows = [r for i, r in enumerate(self.rows) if i < n or r.drifted]
        return plain({"drift": self.found, "exit_code": self.exit_code, "n_before": self.n_before, "n_now": self.n_now,
                      "tested": len(self.rows), "fdr": self.fdr, "min_effect": self.min_effect,
                      "min_images": self.min_images, "detectable": self.detectable, "definition": DEFINITION,
                      "drifted": [r.text for r in self.drifted], "rows": [asdict(r) for r in rows]})  # fmt: skip


def detectable_difference(
    n_before: int, n_now: int, *, prevalence: float = 0.5, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest rise of a prevalence that a two-sided test finds with the given power.

    The `d` that solves `d = z_{1-alpha/2} sqrt(m(1-m)(1/n + 1/n')) + z_power sqrt(p(1-p)/n + (p+d)(1-p-d)/n')`, with
    `m` the pooled prevalence (Fleiss et al. 2003, chapter 4, without continuity correction).

    Args:
        n_before, n_now: images.
        prevalence: before, in [0, 1).
        alpha: level of the one test; divide it by the number of concepts for one change among many.
        power: wanted, in (0, 1).

    Returns:
        The rise, or NaN where even a prevalence of 1 would not be told apart.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> round(detectable_difference(1000, 1000), 3)
        0.062
    """
    if min(n_before, n_now) < 1 or not (0 <= prevalence < 1 and 0 < alpha < 1 and 0 < power < 1):
        raise ValueError(
            f"n_before={n_before}, n_now={n_now}, prevalence={prevalence}, alpha={alpha}, power={power} were given; "
            "expected at least one image each, a prevalence in [0, 1), alpha and power in (0, 1)."
        )
    p, a, b = prevalence, -ndtri(alpha / 2), ndtri(power)

    def missing(d: float) -> float:
        m = (n_before * p + n_now * (p + d)) / (n_before + n_now)
        null = m * (1 - m) * (1 / n_before + 1 / n_now)
        return d - a * null**0.5 - b * (p * (1 - p) / n_before + (p + d) * (1 - p - d) / n_now) ** 0.5

    low, high = 0.0, 1 - p
    if missing(high) < 0:
        return float("nan")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if missing(middle) >= 0 else (middle, high)
    return high


def drift(
    reference: Profile,
    weights: Any,
    texts: Sequence[str],
    *,
    key: str = "",
    fdr: float = 0.05,
    min_effect: float = 0.02,
    min_images: int = 5,
) -> DriftReport:
    """Compare new images with a profile, concept by concept.

    Prevalences by Fisher's exact test, distributions of the weights by the Kolmogorov-Smirnov statistic, both exact or
    conservative, so that without any drift the chance of a report is at most `fdr`.

    Args:
        reference: what `profile` returned for the reference images.
        weights: `[N, K]` of the new images, sparse, >= 0.
        texts: the same K concepts.
        key: as given to `profile`.
        fdr: false discovery rate, in (0, 1).
        min_effect: smallest KS statistic that matters; it is never below the change of the prevalence.
        min_images: concepts that fewer images of both sets together have are not tested.

    Returns:
        The report.

    Raises:
        ValueError: for another vocabulary or key than the reference's, or weights and texts that do not fit.

    Example:
        >>> import numpy as np
        >>> before = profile(np.eye(2)[[0, 1] * 100], ["dog", "cat"])
        >>> drift(before, np.eye(2)[[0, 1] * 50], ["dog", "cat"]).exit_code
        0
        >>> [row.text for row in drift(before, np.eye(2)[[0] * 100], ["dog", "cat"]).drifted]
        ['dog', 'cat']
    """
    if not (0 < fdr < 1 and 0 <= min_effect <= 1):
        raise ValueError(f"fdr={fdr} and min_effect={min_effect} were given; expected (0, 1) and [0, 1].")
    _check_same(reference, texts, key)
    w = checked_weights(weights, texts)
    now = profile(w, texts, key=key)
    tested = np.flatnonzero(reference.count + now.count >= min_images)
    below_now = counts_below(w, reference.edges)[tested]
    before = _cumulative(reference.n, reference.count[tested], reference.below[tested])
    after = _cumulative(now.n, now.count[tested], below_now)
    ks = np.abs(before / reference.n - after / now.n).max(1)
    p_share = fisher_exact(reference.count[tested], reference.n, now.count[tested], now.n)
    p_shape = kolmogorov(ks * np.sqrt(reference.n * now.n / (reference.n + now.n)))
    p = np.minimum(1.0, 2 * np.minimum(p_share, p_shape))
    q = benjamini_hochberg(p)
    psi = _psi(before, after, reference.n, now.n)
    drifted = (q <= fdr) & (ks >= min_effect)
    columns = [v[tested] for v in (reference.prevalence, now.prevalence, reference.mean, now.mean)] + [ks, psi, p, q]
    rows = tuple(
        DriftRow(texts[tested[i]], *(float(v[i]) for v in columns), bool(drifted[i])) for i in np.lexsort((-ks, q))
    )
    # Two tests a concept share its level, and a single change among all is held against the strictest step.
    detectable = detectable_difference(reference.n, now.n, alpha=fdr / max(1, 2 * len(tested)))
    return DriftReport(reference.n, now.n, rows, fdr, min_effect, min_images, detectable)


def _check_same(reference: Profile, texts: Sequence[str], key: str) -> None:
    if key != reference.key:
        raise ValueError(
            f"The reference profile has the key {reference.key!r} and the new weights {key!r}; weights of different "
            "vocabularies or settings cannot be compared. Decompose the new images as the reference was."
        )
    if tuple(texts) != reference.texts:
        pairs = zip(texts, reference.texts)
        first = next((f"{a!r} instead of {b!r}" for a, b in pairs if a != b), "the number of concepts")
        raise ValueError(
            f"The {len(texts)} concepts given are not the {len(reference.texts)} of the reference profile: the first "
            f"difference is {first}. Decompose the new images with the reference's vocabulary."
        )


def _cumulative(n: int, count: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`[T, 1 + 9]` images at or below zero and every edge."""
    return np.concatenate([(n - count)[:, None], below], 1).astype(np.float64)


def _psi(before: np.ndarray, after: np.ndarray, n_before: int, n_now: int) -> np.ndarray:
    """`sum_b (p_b - q_b) ln(p_b / q_b)` over the bins between the edges."""

    def shares(cumulative: np.ndarray, n: int) -> np.ndarray:
        bins = np.diff(cumulative, axis=1, prepend=0.0, append=float(n))
        return (bins + 0.5) / (n + 0.5 * bins.shape[1])

    p, q = shares(before, n_before), shares(after, n_now)
    return ((p - q) * np.log(p / q)).sum(1)
