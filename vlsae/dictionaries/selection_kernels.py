"""Compiled loops that find the few large numbers in rows of pre-activations.

Latents are looked at in groups of 64: a group is opened only if its maximum is large enough, so that a row is read about
once. Every kernel works on rows `lo` to `hi` and lets go of Python's lock, so that threads share a batch.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

FAST = {"contract", "reassoc", "nnan", "ninf", "nsz", "arcp"}
GROUP, LANES = 64, 16

compiled = njit(fastmath=FAST, error_model="numpy", nogil=True, cache=True)


def number(value):
    """A product as float32; uint16 are the bits of a bfloat16, the upper half of a float32's."""


@overload(number)
def _number(value):
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


@njit(nogil=True, cache=True)
def nth_largest(a, n, k):
    """The k-th largest (from 1) of `a[:n]`, by quickselect; `a` is put in another order.

    Compiled without fast-math: NaN must end its loops.
    """
    lo, hi, wanted = 0, n - 1, k - 1
    while lo < hi:
        pivot, i, j = a[(lo + hi) >> 1], lo, hi
        while i <= j:
            while a[i] > pivot:
                i += 1
            while a[j] < pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if wanted <= j:
            hi = j
        elif wanted >= i:
            lo = i
        else:
            break
    return a[wanted]


@compiled
def _score(row, bias, signed, j):
    value = number(row[j]) + bias[j]
    return abs(value) if signed else value


@compiled
def _group_maxima(row, bias, signed, lanes, maxima):
    """The largest score of every group; whole groups by 16 maxima side by side, which become vector instructions."""
    n = row.shape[0]
    for g in range(n // GROUP):
        begin = g * GROUP
        for lane in range(LANES):
            j = begin + lane
            low = max(_score(row, bias, signed, j), _score(row, bias, signed, j + LANES))
            high = max(_score(row, bias, signed, j + 2 * LANES), _score(row, bias, signed, j + 3 * LANES))
            lanes[lane] = max(low, high)
        top = lanes[0]
        for j in range(LANES):
            top = max(top, lanes[j])
        maxima[g] = top
    if n % GROUP:
        top = np.float32(-3e38)
        for j in range(n // GROUP * GROUP, n):
            top = max(top, _score(row, bias, signed, j))
        maxima[n // GROUP] = top


@compiled
def candidates_of_rows(P, bias, k, signed, margin, relative, idx, val, count, lo, hi):
    """Latents whose score is at least the row's k-th largest `s` less `margin[row] + relative |s|`, in their order.

    The score is the pre-activation, or its size where `signed`. `count` goes on beyond the room in `idx` and `val`.
    """
    n, room = P.shape[1], idx.shape[1]
    groups = (n + GROUP - 1) // GROUP
    maxima, work, lanes = (
        np.empty(groups, np.float32),
        np.empty(max(groups, n), np.float32),
        np.empty(LANES, np.float32),
    )
    found, values = np.empty(n, np.int32), np.empty(n, np.float32)
    for r in range(lo, hi):
        row = P[r]
        _group_maxima(row, bias, signed, lanes, maxima)
        bound = np.float32(-3e38)
        if k <= groups:
            work[:groups] = maxima
            bound = nth_largest(work, groups, k)
            bound -= margin[r] + relative * abs(bound)
        c = 0
        for g in range(groups):
            if maxima[g] >= bound:
                for j in range(g * GROUP, min(n, g * GROUP + GROUP)):
                    v = number(row[j]) + bias[j]
                    s = abs(v) if signed else v
                    if s >= bound:
                        found[c], values[c], work[c] = j, v, s
                        c += 1
        least = nth_largest(work, c, k)
        least -= margin[r] + relative * abs(least)
        kept = 0
        for i in range(c):
            s = abs(values[i]) if signed else values[i]
            if s >= least:
                if kept < room:
                    idx[r, kept], val[r, kept] = found[i], values[i]
                kept += 1
        count[r] = kept


@compiled
def top_k_of_candidates(k, signed, positive, idx, val, count, lo, hi):
    """Keep each row's k best candidates, ties to the lower latent; of them the positive ones, or all but zeros."""
    work = np.empty(idx.shape[1], np.float32)
    for r in range(lo, hi):
        c = count[r]
        least, ties = np.float32(-3e38), c
        if c > k:
            for i in range(c):
                work[i] = abs(val[r, i]) if signed else val[r, i]
            least = nth_largest(work, c, k)
            ties = k
            for i in range(c):
                s = abs(val[r, i]) if signed else val[r, i]
                if s > least:
                    ties -= 1
        kept = 0
        for i in range(c):
            v = val[r, i]
            s = abs(v) if signed else v
            if s == least:
                ties -= 1
            if (s > least or (s == least and ties >= 0)) and (v > 0 or (v < 0 and not positive)):
                idx[r, kept], val[r, kept] = idx[r, i], v
                kept += 1
        count[r] = kept


@compiled
def rescore(X, W, bias, idx, val, count, lo, hi):
    """Candidates' pre-activations anew in single precision, `x . W[latent] + bias[latent]`."""
    for r in range(lo, hi):
        x = X[r]
        for i in range(count[r]):
            w, total = W[idx[r, i]], np.float32(0.0)
            for j in range(x.shape[0]):
                total += x[j] * w[j]
            val[r, i] = total + bias[idx[r, i]]


@compiled
def above(P, bias, bounds, idx, val, count, lo, hi):
    """Latents with a pre-activation above `bounds[row]`, in their order; `count` goes on beyond the room."""
    n, room = P.shape[1], idx.shape[1]
    maxima, lanes = np.empty((n + GROUP - 1) // GROUP, np.float32), np.empty(LANES, np.float32)
    for r in range(lo, hi):
        row, bound, c = P[r], bounds[r], 0
        _group_maxima(row, bias, False, lanes, maxima)
        for g in range(maxima.shape[0]):
            if maxima[g] > bound:
                for j in range(g * GROUP, min(n, g * GROUP + GROUP)):
                    v = number(row[j]) + bias[j]
                    if v > bound:
                        if c < room:
                            idx[r, c], val[r, c] = j, v
                        c += 1
        count[r] = c
