"""What adaptation gained, from accuracies in per cent."""

from __future__ import annotations

import numpy as np


def relative_gain(zero_shot: float | np.ndarray, adapted: float | np.ndarray) -> float | np.ndarray:
    """The share of the zero-shot errors that adaptation took away, `(a - z) / (100 - z)` (arXiv 2412.05276).

    Args:
        zero_shot, adapted: accuracies in per cent, 0 to 100.

    Returns:
        At most 1, negative where adaptation lost; NaN where zero-shot made no error.

    Raises:
        ValueError: for values outside 0 to 100.

    Example:
        >>> relative_gain(60.0, 80.0)
        0.5
    """
    z, a = _percentages(zero_shot), _percentages(adapted)
    gain = np.divide(a - z, 100 - z, out=np.full(np.broadcast(a, z).shape, np.nan), where=z < 100)
    return gain if gain.ndim else float(gain)


def harmonic_mean(base: float | np.ndarray, new: float | np.ndarray) -> float | np.ndarray:
    """The harmonic mean of the accuracies on base and new classes, `2 b n / (b + n)`; 0 where both are 0.

    Args:
        base, new: accuracies in per cent, 0 to 100.

    Raises:
        ValueError: for values outside 0 to 100.

    Example:
        >>> round(harmonic_mean(82.28, 75.14), 2)  # MaPLe's published averages (arXiv 2210.03117)
        78.55
    """
    b, n = _percentages(base), _percentages(new)
    mean = np.divide(2 * b * n, b + n, out=np.zeros(np.broadcast(b, n).shape), where=b + n > 0)
    return mean if mean.ndim else float(mean)


def _percentages(accuracy: float | np.ndarray) -> np.ndarray:
    values = np.asarray(accuracy, np.float64)
    if not ((values >= 0) & (values <= 100)).all():
        raise ValueError(f"Accuracies in per cent were expected, from 0 to 100; given: {accuracy}.")
    return values
