"""Uncertainty for counts and means: exact tails, false discovery rates, Wilson and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.special import gammaln, ndtri

CHUNK = 1 << 22  # counts drawn at a time, which bounds the memory to some 100 MB


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Smallest false discovery rate at which each test would be reported (Benjamini and Hochberg 1995).

    `q_(i) = min_{j >= i} p_(j) m / j` over the sorted p-values.

    Args:
        p: p-values in [0, 1], any shape; all of them count as tested.

    Returns:
        q-values of the same shape.

    Raises:
        ValueError: for NaN or values outside [0, 1].

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.04, 0.04]
    """
    p = np.asarray(p, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError("Some p-values are NaN or outside [0, 1]; expected probabilities. Leave out untested pairs.")
    flat = p.ravel()
    order = np.argsort(flat)[::-1]
    scaled = flat[order] * flat.size / np.arange(flat.size, 0, -1)
    q = np.empty_like(flat)
    q[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return q.reshape(p.shape)


def fisher_exact(present: np.ndarray, n: np.ndarray, present_rest: np.ndarray, n_rest: np.ndarray) -> np.ndarray:
    """Two-sided Fisher's exact test that two shares are equal, for arrays of 2 x 2 tables.

    Twice the hypergeometric tail on the side where the count lies, at most 1: valid at every sample size, and never
    smaller than the test that orders tables by probability would be by more than a factor of two.

    Args:
        present, n: images with the concept among `n`.
        present_rest, n_rest: the same for the images they are compared with. All four broadcast.

    Returns:
        p-values.

    Example:
        >>> fisher_exact(9, 10, 1, 10).round(5).item()
        0.00109
    """
    a, n1, b, n2 = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (present, n, present_rest, n_rest)))
    above = a * n2 >= b * n1
    # The upper tail of the other group is the lower tail of this one.
    tail = upper_tail(np.where(above, a, b), np.where(above, n1, n2), a + b, n1 + n2)
    return np.minimum(1.0, 2.0 * tail)


def upper_tail(x: np.ndarray, draws: np.ndarray, good: np.ndarray, total: np.ndarray) -> np.ndarray:
    """`P(X >= x)` of the hypergeometric distribution, over arrays; meant for `x` at or above its mean.

    The first term by log-gamma, the others by their ratio, until they no longer count.

    Example:
        >>> upper_tail(np.array(2.0), 2, 2, 4).round(4).item()  # both draws good: 2/4 * 1/3
        0.1667
    """
    arrays = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (x, draws, good, total)))
    shape = arrays[0].shape
    x, draws, good, total = (v.ravel() for v in arrays)
    term = np.exp(_log_choose(good, x) + _log_choose(total - good, draws - x) - _log_choose(total, draws))
    tail, active, x = term.copy(), np.arange(term.size), x.copy()
    while active.size:
        g, d, t, at = good[active], draws[active], total[active], x[active]
        term[active] *= (g - at) * (d - at) / ((at + 1) * (t - g - d + at + 1))
        x[active] += 1
        tail[active] += term[active]
        active = active[term[active] > 1e-16 * tail[active]]
    return np.minimum(tail, 1.0).reshape(shape)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def wilson(hits: np.ndarray, n: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of a share (Wilson 1927), which stays in [0, 1] and holds its level for small `n`.

    `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Args:
        hits, n: successes among trials, `n >= 1`.
        level: coverage.

    Returns:
        Lower and upper ends.

    Example:
        >>> [round(float(end), 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    hits, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    z = ndtri((1 + level) / 2)
    p = hits / n
    middle = p + z**2 / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return np.maximum((middle - half) / scale, 0.0), np.minimum((middle + half) / scale, 1.0)


def resampled_sums(weights: sparse.csr_matrix, n_boot: int, rng: np.random.Generator) -> np.ndarray:
    """Column sums of `n_boot` samples of the rows with replacement, `[n_boot, K]`.

    A sample is a multinomial count a row, so all columns of all samples are one sparse product.

    Example:
        >>> resampled_sums(sparse.csr_matrix([[1.0], [1.0]]), 3, np.random.default_rng(0)).ravel().tolist()
        [2.0, 2.0, 2.0]
    """
    transposed = weights.T.tocsr()
    return np.concatenate([(transposed @ counts).T for counts in _resamples(weights.shape[0], n_boot, rng)])


def _resamples(n: int, n_boot: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    step = max(1, CHUNK // n)
    for start in range(0, n_boot, step):
        size = min(step, n_boot - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).T.astype(np.float64)


def percentiles(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval of every column of `[n_boot, K]`."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def check_resampling(n_boot: int, level: float) -> None:
    """Refuse settings of the bootstrap that have no meaning."""
    if n_boot < 20 or not 0 < level < 1:
        raise ValueError(
            f"n_boot={n_boot} and level={level} were given; expected at least 20 resamples (500 is usual) and a level "
            "between 0 and 1 such as 0.95."
        )
