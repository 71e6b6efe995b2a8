"""Which latents are used more or less by the adapted model, with error control over all that are tested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import bdtr, ndtr

from vlsae.adaptation.comparison.aggregation import Aggregates, check_pair, members
from vlsae.splice.audits.inference import benjamini_hochberg, check_resampling, percentiles, resampled_sums

RADEMACHER = 1 / (4 * ndtr(-np.sqrt(2.0)))  # about 3.18, the least constant that holds for all weighted sums of signs
TESTS = ("sign_flip", "sign")
CONTROLS = ("BH", "BY")
KINDS = ("unchanged", "gained", "lost", "amplified", "weakened")
BLOCK = 4096  # latents whose resamples are held at a time


@dataclass(frozen=True)
class Changes:
    """One entry for every class (or the data set) and latent that is active there in either model, as parallel arrays.

    Attributes:
        rows: class id of each entry, -1 for the data set.
        latents: its latent.
        before, after: mean activation an image of the row's images, base and adapted.
        difference: their difference, the mean paired difference.
        low, high: its 95 % percentile interval over images; NaN without a bootstrap, and for entries not tested. Too
            narrow where few images changed, as those of any percentile bootstrap: go by p.
        n_changed: images whose activation differs.
        p: p-value; 1 where not tested.
        q: least rate at which the entry would be reported, over all tested entries; 1 where not tested.
        tested: whether enough images changed for a test to have a chance.
        control: "BH" or "BY".
    """

    rows: np.ndarray
    latents: np.ndarray
    before: np.ndarray
    after: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_changed: np.ndarray
    p: np.ndarray
    q: np.ndarray
    tested: np.ndarray
    control: str

    def __len__(self) -> int:
        return len(self.rows)

    def changed(self, q: float = 0.05) -> np.ndarray:
        """Which entries changed at a false discovery rate of q, bool."""
        if not 0 < q < 1:
            raise ValueError(f"q={q} was given; a false discovery rate lies between 0 and 1, such as 0.05.")
        return self.tested & (self.q <= q)

    def changed_latents(self, q: float = 0.05, row: int | None = None) -> list[int]:
        """Latents that changed in any row, or in the one of this class id (-1: data set); surest and largest first."""
        at = np.flatnonzero(self.changed(q) & ((self.rows == row) if row is not None else True))
        order = at[np.lexsort((-np.abs(self.difference[at]), self.q[at]))]
        return list(dict.fromkeys(self.latents[order].tolist()))

    def kinds(self, q: float = 0.05, cutoff: float = 0.0) -> np.ndarray:
        """What happened to each entry: "unchanged", "gained", "lost", "amplified" or "weakened".

        A latent is in use in a row where its mean activation an image is above the cut-off. Gained: from out of use to in
        use; lost: the reverse; the others changed without crossing it. Entries not reported at q are "unchanged".

        Raises:
            ValueError: for a q outside (0, 1) or a negative cut-off.
        """
        if cutoff < 0:
            raise ValueError(
                f"cutoff={cutoff} was given; activations an image are compared with a value of at least 0."
            )
        used, uses, more = self.before > cutoff, self.after > cutoff, self.difference > 0
        number = np.where(more, np.where(~used & uses, 1, 3), np.where(used & ~uses, 2, 4))
        return np.array(KINDS)[np.where(self.changed(q), number, 0)]


def sign_flip_p(total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Two-sided p-values that differences `d_i` are symmetric about 0, never below those of all `2^m` sign flips.

    `min(1, 2 c (1 - Phi(t)))` with `t = |sum d| / sqrt(sum d^2)` and `c = 1 / (4 (1 - Phi(sqrt 2)))`, about 3.18: the least
    constant with `P(sum a_i e_i >= t) <= c (1 - Phi(t))` for random signs e and all a of norm 1 (Bentkus and Dzindzalieta
    2015). Flipping signs leaves `sum d^2` as it is, so this is also the test by Student's statistic. It holds
    for any number of differences other than 0, however unequal, and is as fine as needed for thousands of tests, which
    drawn sign flips are not. The price: p-values are 3.18 times too large for many like differences, and
    more where a few large ones rule, whose sum has lighter tails.

    Args:
        total: sums of differences.
        squares: sums of their squares.

    Returns:
        p-values; 1 where there is no difference.

    Example:
        >>> sign_flip_p(np.array([2.0, 9.0]), np.array([2.0, 9.0])).round(4).tolist()  # two and nine ones: exactly 1/2, 2^-8
        [0.5, 0.0086]
    """
    t = np.divide(np.abs(total), np.sqrt(squares), out=np.zeros(np.shape(total)), where=squares > 0)
    return np.minimum(1.0, 2 * RADEMACHER * ndtr(-t))


def sign_p(more: np.ndarray, fewer: np.ndarray) -> np.ndarray:
    """Two-sided exact sign test: `2 P(Bin(m, 1/2) <= min(more, fewer))`, m their sum; differences of 0 are left out.

    Example:
        >>> sign_p(np.array([9, 3]), np.array([0, 3])).tolist()
        [0.00390625, 1.0]
    """
    least, m = np.minimum(more, fewer), more + fewer
    return np.minimum(1.0, 2 * bdtr(np.asarray(least, np.float64), np.maximum(m, 1), 0.5) * (m > 0) + (m == 0))


def changes(
    base: Aggregates, adapted: Aggregates, *, level: str = "class", test: str = "sign_flip", control: str = "BH",
    min_images: int = 6, n_boot: int = 0, seed: int = 0,
) -> Changes:  # fmt: skip
    """Test for every class and latent whether the adapted model activates it more or less than the base on the same images.

    The null hypothesis of "sign_flip" is that exchanging the two models on any image changes nothing in law, so that the
    paired difference `d_i = a_i(adapted) - a_i(base)` is symmetric about 0; that of "sign" only that it is as often positive
    as negative, which a few images with large differences do not rule. Entries whose activation differs on fewer than
    `min_images` images could reach no small p-value and are left out of the family. This choice looks at `|d_i|` alone, given
    which the tests hold, so p-values stay valid. Benjamini and Hochberg's control ("BH") holds for independent tests and
    positively dependent ones; Benjamini and Yekutieli's ("BY") always, which matters for latents that compete (TopK).

    Args:
        base, adapted: aggregates of the same images.
        level: "class" (one family of all classes and latents) or "dataset".
        test: "sign_flip" (`sign_flip_p`) or "sign" (`sign_p`).
        control: "BH" or "BY".
        min_images: images that have to differ.
        n_boot: resamples of the images within each class behind the intervals, at least 20; 0 leaves them out.
        seed: of these.

    Returns:
        `Changes`.

    Raises:
        ValueError: for aggregates of other images or settings, and unknown names.

    Example:
        >>> before = sparse.csr_matrix(np.full((20, 2), 3)); after = before + sparse.csr_matrix([[2, 0]] * 20)
        >>> one, other = (Aggregates(m, np.zeros(20, int), 9, "count", 0.2) for m in (before, after))
        >>> changes(one, other).changed_latents(), changes(one, one).changed_latents()
        ([0], [])
    """
    check_pair(base, adapted)
    _check(level, test, control, min_images, n_boot)
    ids = base.classes if level == "class" else np.array([-1])
    group = (
        members(base.labels, ids) if level == "class" else sparse.csr_matrix(np.ones((1, len(base.labels)), np.int64))
    )
    difference = sparse.csr_matrix(adapted.image - base.image, dtype=np.float64)
    difference.eliminate_zeros()
    rows, latents = (group @ ((base.image != 0) + (adapted.image != 0)).astype(np.int64)).nonzero()

    def summed(images: sparse.csr_matrix) -> np.ndarray:
        """Sums of a quantity over the images of every entry."""
        return np.asarray((group @ images.astype(np.float64))[rows, latents], np.float64).reshape(-1)

    more, fewer = summed(difference > 0), summed(difference < 0)
    total, size = summed(difference), np.asarray(group.sum(1)).ravel()[rows]
    n_changed = (more + fewer).astype(np.int64)
    tested = n_changed >= min_images
    p = sign_flip_p(total, summed(difference.power(2))) if test == "sign_flip" else sign_p(more, fewer)
    p = np.where(tested, p, 1.0)
    q = np.ones(len(p))
    q[tested] = false_discovery(p[tested], control)
    low, high = np.full((2, len(p)), np.nan)
    if n_boot:
        low[tested], high[tested] = _intervals(
            difference, base.labels, group, rows[tested], latents[tested], n_boot, seed
        )
    before, after = summed(base.image) / size, summed(adapted.image) / size
    return Changes(ids[rows], latents, before, after, total / size, low, high, n_changed, p, q, tested, control)


def false_discovery(p: np.ndarray, control: str = "BH") -> np.ndarray:
    """q-values of Benjamini and Hochberg (1995), or times `sum_{i<=m} 1/i` of Benjamini and Yekutieli (2001).

    Example:
        >>> false_discovery(np.array([0.01, 0.04]), "BY").round(3).tolist()
        [0.03, 0.06]
    """
    if control not in CONTROLS:
        raise ValueError(f"control={control!r} is unknown; use one of {', '.join(CONTROLS)}.")
    factor = (1 / np.arange(1, len(p) + 1)).sum() if control == "BY" else 1.0
    return np.minimum(1.0, factor * benjamini_hochberg(p))


def _check(level: str, test: str, control: str, min_images: int, n_boot: int) -> None:
    for name, value, known in (
        ("level", level, ("class", "dataset")),
        ("test", test, TESTS),
        ("control", control, CONTROLS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}.")
    if min_images < 1:
        raise ValueError(f"min_images={min_images} was given; a test needs at least 1 image that differs.")
    if n_boot:
        check_resampling(n_boot, 0.95)


def _intervals(
    difference: sparse.csr_matrix, labels: np.ndarray, group: sparse.csr_matrix, rows, latents, n_boot: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of mean differences: images drawn within each class, rows of `group` one after the other."""
    low, high = np.empty((2, len(rows)))
    columns = difference.tocsc()
    for r in np.unique(rows):
        images = group[r].indices
        strata = [images[labels[images] == label] for label in np.unique(labels[images])]
        for begin in range(0, int((rows == r).sum()), BLOCK):
            entries = np.flatnonzero(rows == r)[begin : begin + BLOCK]
            table = columns[:, latents[entries]].tocsr()
            rng = np.random.default_rng([seed, int(r)])
            drawn = sum(resampled_sums(table[at], n_boot, rng) for at in strata)
            low[entries], high[entries] = percentiles(drawn / len(images), 0.95)
    return low, high
