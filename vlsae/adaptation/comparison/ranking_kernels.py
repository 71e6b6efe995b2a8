"""Compiled loops over pairs of sparse rows: how far two rankings agree at every depth."""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(nogil=True, cache=True)


@compiled
def _places(values, depth, start, size):
    """Where each latent stands: how many lie strictly above it, and how many are tied with it, itself included.

    Silent latents, and those with `depth` others above them, get `start = depth`. Returns the number that are active.
    """
    found, keys, active = np.empty(len(values), np.int64), np.empty(len(values)), 0
    for s in range(len(values)):
        start[s], size[s] = depth, 1
        if values[s] > 0:
            found[active], keys[active] = s, -values[s]
            active += 1
    order, begin = np.argsort(keys[:active]), 0
    while begin < min(active, depth):
        end = begin + 1
        while end < active and keys[order[end]] == keys[order[begin]]:
            end += 1
        for e in range(begin, end):
            start[found[order[e]]], size[found[order[e]]] = begin, end - begin
        begin = end
    return active


@compiled
def _agreement(b, a, depth, shared):
    """Fill `shared[d]`, d = 0 to depth, with the sum over latents of the smaller share of them in both top d."""
    start_b, size_b = np.empty(len(b), np.int64), np.empty(len(b), np.int64)
    start_a, size_a = np.empty(len(b), np.int64), np.empty(len(b), np.int64)
    n_b, n_a = _places(b, depth, start_b, size_b), _places(a, depth, start_a, size_a)
    for d in range(depth + 1):
        shared[d] = 0.0
    for s in range(len(b)):
        d = max(start_b[s], start_a[s]) + 1
        while d <= depth:
            share = min((d - start_b[s]) / size_b[s], (d - start_a[s]) / size_a[s])
            if share >= 1.0:
                break
            shared[d] += share
            d += 1
        while d <= depth:
            shared[d] += 1.0
            d += 1
    return n_b, n_a


@compiled
def agreements(b_starts, b_latents, b_values, a_starts, a_latents, a_values, n_latents, shared, active, lo, hi):
    """`_agreement` of every pair of rows of two CSR matrices, for rows `lo` to `hi`.

    Args:
        b_starts, b_latents, b_values, a_starts, a_latents, a_values: the two matrices.
        n_latents: their columns.
        shared: float64 `[R, depth + 1]`, filled.
        active: int64 `[R, 2]`, filled with the numbers of latents above 0.
    """
    place, depth = np.full(n_latents, -1), shared.shape[1] - 1
    for r in range(lo, hi):
        first, last = b_starts[r], b_starts[r + 1]
        size = last - first + a_starts[r + 1] - a_starts[r]
        b, a, found = np.zeros(size), np.zeros(size), 0
        for e in range(first, last):
            place[b_latents[e]], b[found] = found, b_values[e]
            found += 1
        for e in range(a_starts[r], a_starts[r + 1]):
            at = place[a_latents[e]]
            if at < 0:
                at, found = found, found + 1
            a[at] = a_values[e]
        for e in range(first, last):
            place[b_latents[e]] = -1
        active[r, 0], active[r, 1] = _agreement(b[:found], a[:found], depth, shared[r])
