"""How much of base's ranking of latents the adapted model keeps: top-k overlap and rank-biased overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vlsae.adaptation.comparison.aggregation import LEVELS, Aggregates, check_pair
from vlsae.adaptation.comparison.ranking import Agreement, agreement
from vlsae.metrics.result import Metric
from vlsae.splice.audits.inference import check_resampling, resampled_sums

KS = (1, 5, 10, 20, 50, 100)
P = 0.9  # persistence of rank-biased overlap: the first ten places carry 86 % of the weight
TAIL = 1e-6  # weight of the places that are not looked at
DRAWS = 50  # resamples at a time, which bounds the memory
TOP_K = (
    "mean over {} of |T_b & T_a| / max(|T_b|, |T_a|), T the top k={} latents of those above 0; tied ones share places"
)
RBO = "mean over {} of extrapolated rank-biased overlap at p={:g}, tied latents share places"


@dataclass(frozen=True)
class Overlap:
    """Overlap of two models' rankings at one level.

    Attributes:
        level: "image", "class" or "dataset".
        top_k: by k, the mean over rows; `n` rows, with interval and baselines.
        rbo: the mean rank-biased overlap.
        ks: columns of `rows`.
        rows: `[R, len(ks)]`, top-k overlap of each image, class or the data set; NaN where neither model has a latent.
        rbo_rows: `[R]`.
    """

    level: str
    top_k: dict[int, Metric]
    rbo: Metric
    ks: tuple[int, ...]
    rows: np.ndarray
    rbo_rows: np.ndarray


def top_k_overlap(found: Agreement, k: int) -> np.ndarray:
    """`|T_b & T_a| / max(|T_b|, |T_a|)` of each pair of rankings, `[R]`: divided by k unless both hold fewer latents.

    Raises:
        ValueError: for a k that is not within the depth.

    Example:
        >>> b, a = (sparse.csr_matrix([row]) for row in ([3.0, 2.0, 1.0], [1.0, 0.0, 4.0]))
        >>> top_k_overlap(agreement(b, a, 3), 2).tolist(), top_k_overlap(agreement(b, a, 3), 3).round(3).tolist()
        ([0.5], [0.667])
    """
    if not 1 <= k <= found.depth:
        raise ValueError(f"k={k} was given; these rankings were compared down to place {found.depth}.")
    return _share(found.shared[:, k], np.minimum(found.active, k).max(1))


def random_top_k(active: np.ndarray, union: np.ndarray, k: int) -> np.ndarray:
    """Expected overlap of two independent draws of k among `union` latents, `[R]`: k / m, less where fewer are active."""
    return _share(np.minimum(active, k).min(1), union)


def rank_biased_overlap(found: Agreement, p: float = P) -> np.ndarray:
    """Extrapolated rank-biased overlap of each pair of rankings, `[R]`.

    `RBO_ext = (1-p)/p (sum_{d<=l} X_d/d p^d + sum_{s<d<=l} X_s (d-s)/(s d) p^d) + ((X_l - X_s)/l + X_s/s) p^l`, X_d the
    latents shared at depth d, s and l the lengths of the shorter and longer ranking (Webber, Moffat and Zobel 2010,
    equation 32). Tied latents enter `X_d` with the share of places left for them.

    Args:
        found: agreement; places beyond its depth, of weight `p^depth`, are extrapolated.
        p: persistence in (0, 1): the chance to look one place further down.

    Returns:
        In [0, 1]; 0 where one ranking is empty, NaN where both are.

    Raises:
        ValueError: for p outside (0, 1).

    Example:
        >>> b, a = (sparse.csr_matrix([row]) for row in ([3.0, 2.0, 1.0], [3.0, 1.0, 2.0]))
        >>> rank_biased_overlap(agreement(b, a, 3), 0.9).round(4).tolist()  # .1 (1 + .9/2 + .81) + .729
        [0.955]
    """
    shorter = np.minimum(found.active.min(1), found.depth)
    return _extrapolated(found.shared, shorter, np.minimum(found.active.max(1), found.depth), p)


def random_rbo(active: np.ndarray, union: np.ndarray, depth: int, p: float = P) -> np.ndarray:
    """Expected rank-biased overlap of two random rankings of latents drawn among `union`, `[R]`: `E X_d = d^2 / m`."""
    places = np.minimum(active[:, :, None], np.arange(depth + 1))
    expected = places[:, 0] * places[:, 1] / np.maximum(union, 1)[:, None]
    return _extrapolated(expected, np.minimum(active.min(1), depth), np.minimum(active.max(1), depth), p)


def _extrapolated(shared: np.ndarray, shorter: np.ndarray, longer: np.ndarray, p: float) -> np.ndarray:
    if not 0 < p < 1:
        raise ValueError(f"p={p} was given; rank-biased overlap needs a persistence between 0 and 1, such as 0.9.")
    rows, d = np.arange(len(shared)), np.arange(1, shared.shape[1])
    weight = p**d
    seen = (d <= longer[:, None]) * weight
    s, x_s, x_l = np.maximum(shorter, 1), shared[rows, shorter], shared[rows, longer]  # x_s is 0 where s would be
    beyond = np.maximum(d - s[:, None], 0) / (s[:, None] * d)
    total = (shared[:, 1:] / d * seen).sum(1) + x_s * (beyond * seen).sum(1)
    rest = (x_l - x_s) / np.maximum(longer, 1) + x_s / s
    return np.where(longer > 0, (1 - p) / p * total + rest * p**longer, np.nan)


def overlaps(
    base: Aggregates, adapted: Aggregates, *, levels: Sequence[str] = LEVELS, ks: Sequence[int] = KS, p: float = P,
    n_boot: int = 200, seed: int = 0,
) -> dict[str, Overlap]:  # fmt: skip
    """Overlap of base's and the adapted model's latents at every level, with intervals and baselines.

    Intervals are bootstrap intervals over images, drawn with replacement within each class for both models alike; classes
    and data set are ranked again. Noise makes close ranks change places and so lowers overlaps, in the data as in the
    resamples: an interval reaches as far to both sides as the further of the two percentiles lies from the value. With few
    images a class the bias remains for rank-biased overlap, whose true value for endless images may lie above.
    Baselines: "random", two independent draws among the latents active in either model, in
    closed form; "another", the adapted model's next image or class, what is shared without being about the same.

    Args:
        base, adapted: aggregates of the same images.
        levels: some of "image", "class", "dataset".
        ks: sizes of the top.
        p: persistence of rank-biased overlap.
        n_boot: resamples, at least 20; 0 leaves the intervals out.
        seed: of these.

    Returns:
        `Overlap` by level. Images without a class count for images and the data set.

    Raises:
        ValueError: for aggregates of other images or settings, an unknown level, or settings out of range.

    Example:
        >>> a = Aggregates(sparse.csr_matrix([[2, 1], [1, 3]]), np.array([0, 1]), 4, "count", 0.2)
        >>> overlaps(a, a, ks=(1,), n_boot=0)["class"].top_k[1].value
        1.0
    """
    check_pair(base, adapted)
    if not ks or min(ks) < 1 or not 0 < p < 1:
        raise ValueError(f"ks={tuple(ks)} and p={p} were given; expected sizes of at least 1 and p between 0 and 1.")
    if n_boot:
        check_resampling(n_boot, 0.95)
    depth = min(max(*ks, math.ceil(math.log(TAIL) / math.log(p))), max(base.n_latents, *ks))
    observed = {level: _scores(agreement(base.level(level), adapted.level(level), depth), ks, p) for level in levels}
    draws = _resampled_means(base, adapted, observed, depth, ks, p, n_boot, seed) if n_boot else {}
    return {
        level: _summary(level, base.level(level), adapted.level(level), rows, depth, tuple(ks), p, draws.get(level))
        for level, rows in observed.items()
    }


def _scores(found: Agreement, ks: Sequence[int], p: float) -> np.ndarray:
    """Top-k overlaps and rank-biased overlap, `[R, len(ks) + 1]`."""
    return np.stack([*(top_k_overlap(found, k) for k in ks), rank_biased_overlap(found, p)], 1)


def _summary(level: str, base, adapted, rows: np.ndarray, depth: int, ks: tuple[int, ...], p: float, draws) -> Overlap:
    """The means over rows, with what they are compared with."""
    ranked = ~np.isnan(rows[:, -1])
    value, n = _mean(rows), int(ranked.sum())
    active = np.stack([np.diff((side > 0).astype(np.int64).tocsr().indptr) for side in (base, adapted)], 1)
    union = np.diff(((base > 0) + (adapted > 0)).tocsr().indptr)
    chance = [random_top_k(active, union, k) for k in ks] + [random_rbo(active, union, depth, p)]
    baselines = {"random": _mean(np.stack(chance, 1))}
    if len(rows) > 1:
        others = adapted[np.roll(np.arange(len(rows)), -1)]
        baselines["another"] = _mean(_scores(agreement(base, others, depth), ks, p))
    intervals = _interval(value, draws)
    plural = {"image": "images", "class": "classes", "dataset": "the data set"}[level]
    names = [f"top_{k}_overlap_{level}" for k in ks] + [f"rbo_{level}"]
    definitions = [TOP_K.format(plural, k) for k in ks] + [RBO.format(plural, p)]
    metrics = [
        Metric(names[i], float(value[i]), n, definitions[i], "Webber, Moffat and Zobel 2010, equation 32" if i == len(ks) else
               "arXiv 2412.05276 (the overlap as a number)", None, intervals[i],
               {name: float(means[i]) for name, means in baselines.items()})
        for i in range(len(ks) + 1)
    ]  # fmt: skip
    return Overlap(level, dict(zip(ks, metrics)), metrics[-1], ks, rows[:, :-1], rows[:, -1])


def _interval(value: np.ndarray, draws: np.ndarray | None) -> list[tuple[float, float] | None]:
    if draws is None:
        return [None] * len(value)
    if not np.isfinite(value).all():
        return [(np.nan, np.nan)] * len(value)
    half = np.abs(np.nanquantile(draws, [0.025, 0.975], axis=0) - value).max(0)
    return [(float(a), float(b)) for a, b in zip(np.clip(value - half, 0, 1), np.clip(value + half, 0, 1))]


def _resampled_means(
    base: Aggregates,
    adapted: Aggregates,
    observed: dict,
    depth: int,
    ks: Sequence[int],
    p: float,
    n_boot: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean overlaps of every resample, `[n_boot, len(ks) + 1]` by level."""
    found: dict[str, list[np.ndarray]] = {level: [] for level in observed}
    rng = np.random.default_rng(seed)
    for start in range(0, n_boot, DRAWS):
        size = min(DRAWS, n_boot - start)
        if "image" in observed:
            found["image"].append(_drawn_images(observed["image"], base.labels, size, rng))
        if "class" in observed or "dataset" in observed:
            for level, means in _drawn_sums(base, adapted, size, rng, depth, ks, p, list(observed)):
                found[level].append(means)
    return {level: np.concatenate(parts) for level, parts in found.items()}


def _strata(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Class ids and their images; images without a class are a stratum of their own, by the id -1."""
    labels = np.maximum(labels, -1)
    for label in np.unique(labels):
        yield int(label), np.flatnonzero(labels == label)


def _drawn_images(rows: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    ranked = ~np.isnan(rows[:, -1])
    table = sparse.csr_matrix(np.concatenate([np.where(ranked[:, None], rows, 0.0), ranked[:, None]], 1))
    total = sum(resampled_sums(table[at], size, rng) for _, at in _strata(labels))
    return _share(total[:, :-1], total[:, -1:])


def _drawn_sums(base: Aggregates, adapted: Aggregates, size: int, rng, depth: int, ks, p: float, levels: list[str]):
    """Means over classes, and overlaps of the data set, of some resamples of the images of both models."""
    n = base.n_latents
    both = sparse.csr_matrix(sparse.hstack([base.image, adapted.image]), dtype=np.float64)
    used = np.unique(both.indices % n)
    both = both[:, np.concatenate([used, used + n])]
    total, classes = np.zeros((size, 2 * len(used))), []
    for label, at in _strata(base.labels):
        sums = resampled_sums(both[at], size, rng)
        total += sums
        if label >= 0 and "class" in levels:
            classes.append(_scores(_agreement_of_halves(sums, depth), ks, p))
    if "class" in levels:
        scores = np.stack(classes) if classes else np.full((1, size, len(ks) + 1), np.nan)
        yield "class", np.stack([_mean(scores[:, i]) for i in range(size)])
    if "dataset" in levels:
        yield "dataset", _scores(_agreement_of_halves(total, depth), ks, p)


def _agreement_of_halves(sums: np.ndarray, depth: int) -> Agreement:
    base, adapted = np.split(sums, 2, axis=1)
    return agreement(sparse.csr_matrix(base), sparse.csr_matrix(adapted), depth)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where there is nothing."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean of every column over rows that are not NaN; NaN where there is none."""
    known = ~np.isnan(rows)
    return _share(np.where(known, rows, 0.0).sum(0), known.sum(0))
