"""Compiled loops over active codes: their cost grows with the codes alone, whatever the number of latents."""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(nogil=True, cache=True)


@compiled
def _bin_of(value, edges):
    """The bin whose lower edge is the last at or below a value; the outermost bins take what lies beyond them."""
    low, high = 0, len(edges) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if edges[middle] <= value:
            low = middle
        else:
            high = middle
    return low


@compiled
def count_codes(latents, values, edges, token_count, value_sum, histogram):
    """Add every code to its latent's count, sum and histogram; values outside the edges go to the outermost bins."""
    for e in range(len(latents)):
        latent, value = latents[e], np.float64(values[e])
        token_count[latent] += 1
        value_sum[latent] += value
        histogram[latent, _bin_of(value, edges)] += 1


@compiled
def images_of_codes(rows, latents, values, n_tokens, n_latents, tau):
    """One entry for every image and latent active in it, in the order in which they appear.

    Args:
        rows: token numbers, rising; `n_tokens` an image.
        latents, values: of every code.
        tau: threshold of the counts.

    Returns:
        Image number, latent, number of codes, of those above `tau`, sum and largest of their values.
    """
    n = len(rows)
    images, owners, sizes, above = (
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
    )
    sums, largest = np.zeros(n, np.float64), np.empty(n, np.float32)
    entry = np.full(n_latents, -1, np.int64)  # a latent's last entry, of this image only if it is at least `begin`
    found, begin, image = 0, 0, np.int64(-1)
    for e in range(n):
        if rows[e] // n_tokens != image:
            image, begin = rows[e] // n_tokens, found
        latent, value = latents[e], values[e]
        at = entry[latent]
        if at < begin:
            at = found
            entry[latent], images[at], owners[at], largest[at] = at, image, latent, value
            found += 1
        sizes[at] += 1
        above[at] += value > tau
        sums[at] += value
        largest[at] = max(largest[at], value)
    return images[:found], owners[:found], sizes[:found], above[:found], sums[:found], largest[:found]


@compiled
def add_at(table, rows, columns, values):
    """`table[rows[e], columns[e]] += values[e]`, entry after entry."""
    for e in range(len(rows)):
        table[rows[e], columns[e]] += values[e]


@compiled
def _is_before(value, numbers, other, other_numbers):
    if value != other:
        return value > other
    for c in range(len(numbers)):
        if numbers[c] != other_numbers[c]:
            return numbers[c] < other_numbers[c]
    return False


@compiled
def keep_best(best, best_ids, latents, values, ids):
    """Let entries with positive values into their latents' lists; equal values keep the lower numbers first.

    Args:
        best: `[n, N]` values, falling; 0 pads.
        best_ids: `[n, N, c]` numbers of each.
        latents, values, ids: of the entries, `ids [entries, c]`.
    """
    n_top = best.shape[1]
    for e in range(len(latents)):
        row, value, place = latents[e], values[e], n_top
        if not value > 0:
            continue
        while place > 0 and _is_before(value, ids[e], best[row, place - 1], best_ids[row, place - 1]):
            place -= 1
        if place == n_top:
            continue
        for j in range(n_top - 1, place, -1):
            best[row, j] = best[row, j - 1]
            for c in range(ids.shape[1]):
                best_ids[row, j, c] = best_ids[row, j - 1, c]
        best[row, place] = value
        for c in range(ids.shape[1]):
            best_ids[row, place, c] = ids[e, c]
