"""PatchSAE's groups of latents: high in both models, from low to high, from high to low."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlsae.adaptation.comparison.aggregation import Aggregates, check_pair


@dataclass(frozen=True)
class Groups:
    """Latents of one class, or the data set, by what adaptation did to them.

    Attributes:
        high: high in both models.
        low_to_high: low in the base, high in the adapted model.
        high_to_low: high in the base, low in the adapted model.
        high_from: value from which on a latent counts as high.
        low_below: value below which it counts as low, as does a silent one.
    """

    high: np.ndarray
    low_to_high: np.ndarray
    high_to_low: np.ndarray
    high_from: float
    low_below: float


def group_latents(base: np.ndarray, adapted: np.ndarray, high: int = 50, low: int = 100) -> Groups:
    """Sort latents by their activation in two models.

    Latents are ranked by the larger of their two activations. High is a value that reaches the one at place `high` of this
    ranking, low one below that at place `low`, or 0. The paper fixes the groups by such cut-offs without giving them exactly
    (arXiv 2412.05276); both are parameters here, and a latent between them is in no group.

    Args:
        base, adapted: `[n]` activations of the same images, such as rows of `class_means`.
        high, low: places, `1 <= high <= low`.

    Returns:
        `Groups`, latents by number. Where fewer latents than a place are active, its value is the smallest above 0.

    Raises:
        ValueError: for unequal lengths or places out of order.

    Example:
        >>> found = group_latents(np.array([9, 8, 0, 1]), np.array([9, 1, 7, 0]), high=3, low=3)
        >>> found.high.tolist(), found.low_to_high.tolist(), found.high_to_low.tolist()
        ([0], [2], [1])
    """
    base, adapted = np.asarray(base, np.float64), np.asarray(adapted, np.float64)
    if base.shape != adapted.shape or base.ndim != 1:
        raise ValueError(f"Activations of shapes {base.shape} and {adapted.shape} were given; expected [n] and [n].")
    if not 1 <= high <= low:
        raise ValueError(f"high={high} and low={low} were given; expected places with 1 <= high <= low.")
    union = np.sort(np.maximum(base, adapted))[::-1]
    union = union[union > 0]
    high_from, low_below = (float(union[min(place, len(union)) - 1]) if len(union) else np.inf for place in (high, low))

    def is_low(values: np.ndarray) -> np.ndarray:
        return (values < low_below) | (values <= 0)

    before, after = base >= high_from, adapted >= high_from
    masks = before & after, is_low(base) & after, before & is_low(adapted)
    return Groups(*(np.flatnonzero(mask) for mask in masks), high_from, low_below)


def group_classes(base: Aggregates, adapted: Aggregates, high: int = 50, low: int = 100) -> dict[int, Groups]:
    """`group_latents` of every class, by class id, on activations an image.

    Raises:
        ValueError: for aggregates of other images or settings, or places out of order.
    """
    check_pair(base, adapted)
    return {
        int(c): group_latents(base.class_means[r].toarray()[0], adapted.class_means[r].toarray()[0], high, low)
        for r, c in enumerate(base.classes)
    }
