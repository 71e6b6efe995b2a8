"""Whether latents have their top images for themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from vlsae.metrics.result import Metric

BLOCK = 4096  # latents whose overlaps are looked at together


@dataclass(frozen=True)
class TopImageOverlap:
    """How far latents share their top images.

    Attributes:
        nearest: `[n]`, the largest Jaccard index of each latent with another; NaN where it has no top images.
        partner: `[n]`, with whom; -1 where nobody shares an image with it.
        metrics: "jaccard", the mean over all pairs of live latents, and "unique", the share of live latents whose
            `nearest` is below the threshold.
    """

    nearest: np.ndarray
    partner: np.ndarray
    metrics: dict[str, Metric]


def top_image_overlap(top: np.ndarray, threshold: float = 0.5) -> TopImageOverlap:
    """The Jaccard index `|A & B| / |A | B|` of the sets of top images of every two latents.

    Pach et al. 2025 (arXiv 2504.02821) compare the 16 top images. Only pairs that share an image are visited.

    Args:
        top: image numbers `[n, N]` such as `LatentStatistics.top_images`; -1 pads, equal numbers of a row count once.
        threshold: from which on two latents count as the same.

    Returns:
        A `TopImageOverlap`; its means are NaN for fewer than two live latents.

    Raises:
        ValueError: for an array of another shape, or a threshold outside 0 to 1.

    Example:
        >>> found = top_image_overlap(np.array([[0, 1, 2], [1, 2, 3], [7, 8, 9], [-1, -1, -1]]))
        >>> found.nearest.tolist(), round(found.metrics["jaccard"].value, 4)
        ([0.5, 0.5, 0.0, nan], 0.1667)
    """
    top = np.asarray(top)
    if top.ndim != 2 or not 0 < threshold <= 1:
        raise ValueError(
            f"top has shape {top.shape} and threshold={threshold}; expected [n, N] and 0 < threshold <= 1."
        )
    rows, columns = (top >= 0).nonzero()
    images = top[rows, columns]
    shape = (len(top), int(images.max(initial=-1)) + 1)
    sets = csr_matrix((np.ones(len(rows)), (rows, images)), shape=shape)
    sets.data[:] = 1.0
    size = np.diff(sets.indptr)
    live = size > 0
    nearest, partner = np.where(live, 0.0, np.nan), np.full(len(top), -1)
    total = 0.0
    for start in range(0, len(top), BLOCK):
        shared = (sets[start : start + BLOCK] @ sets.T).tocoo()
        a, b = shared.row + start, shared.col
        jaccard = shared.data / (size[a] + size[b] - shared.data)
        a, b, jaccard = (values[a != b] for values in (a, b, jaccard))
        total += jaccard.sum()
        order = np.lexsort((-b, jaccard))  # the last written stays: the largest, of equal ones the first latent
        nearest[a[order]], partner[a[order]] = jaccard[order], b[order]
    n = int(live.sum())
    mean = float(total / (n * (n - 1))) if n > 1 else np.nan
    unique = float((nearest[live] < threshold).mean()) if n > 1 else np.nan
    overlap = "mean |A & B| / |A | B| of the top images of two live latents"
    alone = f"share of live latents with no other of Jaccard >= {threshold}"
    reference = "arXiv 2504.02821"
    metrics = {
        "jaccard": Metric("jaccard", mean, n, overlap, reference, higher_is_better=False),
        "unique": Metric("unique", unique, n, alone, reference),
    }
    return TopImageOverlap(nearest, partner, metrics)
