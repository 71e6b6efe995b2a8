"""Compiled loops over long vectors: inner products, the quantised Gram matrix, and scans of all correlations.

Sums may be reassociated (fast-math): inputs are finite by then, and the certificate bounds every rounding error. Numba
keeps compiled code by the file of the caller: after a change here, delete `__pycache__` of the files that import this.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"contract", "reassoc", "nnan", "ninf", "nsz", "arcp"}
BLOCK = 2048  # columns of a sweep: eight rows of int8 and the output stay in the first-level cache

compiled = njit(fastmath=FAST, error_model="numpy", nogil=True, cache=True)


@compiled
def dot32(a, b):
    total = np.float32(0.0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@compiled
def four_dots(row, a, b, c, d):
    """Inner products of one row with four others: the row is read once."""
    s = t = u = v = np.float32(0.0)
    for i in range(row.shape[0]):
        s += row[i] * a[i]
        t += row[i] * b[i]
        u += row[i] * c[i]
        v += row[i] * d[i]
    return s, t, u, v


@compiled
def dot64(a, b):
    total = 0.0
    for i in range(a.shape[0]):
        total += np.float64(a[i]) * b[i]
    return total


@njit(fastmath={"contract", "reassoc"}, nogil=True, cache=True)  # NaN and infinity have to come through
def row_norms(C):
    """Length of every row, in double precision; not finite where a number of the row is not."""
    norms = np.empty(C.shape[0])
    for k in range(C.shape[0]):
        total = 0.0
        for i in range(C.shape[1]):
            total += np.float64(C[k, i]) * C[k, i]
        norms[k] = np.sqrt(total)
    return norms


@compiled
def checksum(words):
    """Of 32-bit words and their order: products of pairs, each word first shifted by a key of its place.

    A sum of words times factors would be quicker by a third, but misses `C *= -1` and `C *= 2`: these change the same
    high bit of every word, or of pairs, and such changes add up to 0.
    """
    total, half = np.uint64(0), words.shape[0] // 2
    first, second = words[:half], words[half : 2 * half]
    for i in range(half):
        key = np.uint32(i) * np.uint32(0x9E3779B1)
        a, b = np.uint32(first[i] + key), np.uint32(second[i] + (key ^ np.uint32(0x85EBCA6B)))
        total += np.uint64(a) * np.uint64(b)
    if words.shape[0] % 2:
        total += np.uint64(words[-1]) * np.uint64(0x9E3779B97F4A7C15)
    return total


@compiled
def quantise(G, rows, gram, scale, made):
    """File rows of the Gram matrix as int8 with one scale a row."""
    for i in range(G.shape[0]):
        largest = np.float32(0.0)
        for j in range(G.shape[1]):
            largest = max(largest, abs(G[i, j]))
        scale[rows[i]] = largest / np.float32(127.0)
        inverse = np.float32(127.0) / largest if largest > 0 else np.float32(0.0)
        target = gram[rows[i]]
        for j in range(G.shape[1]):
            target[j] = np.int8(np.rint(G[i, j] * inverse))
        made[rows[i]] = True


@compiled
def sweep(q, gram, scale, idx, w, m, corr):
    """`corr = q - sum_k w_k G[idx_k]` from quantised rows `G[k] = scale_k gram[k]`."""
    for c0 in range(0, q.shape[0], BLOCK):
        c1 = min(q.shape[0], c0 + BLOCK)
        out, first = corr[c0:c1], q[c0:c1]
        for j in range(c1 - c0):
            out[j] = first[j]
        k = 0
        while k + 8 <= m:
            a = np.float32(w[k] * scale[idx[k]])
            b = np.float32(w[k + 1] * scale[idx[k + 1]])
            c = np.float32(w[k + 2] * scale[idx[k + 2]])
            d = np.float32(w[k + 3] * scale[idx[k + 3]])
            e = np.float32(w[k + 4] * scale[idx[k + 4]])
            f = np.float32(w[k + 5] * scale[idx[k + 5]])
            g = np.float32(w[k + 6] * scale[idx[k + 6]])
            h = np.float32(w[k + 7] * scale[idx[k + 7]])
            ga, gb, gc, gd = (
                gram[idx[k], c0:c1],
                gram[idx[k + 1], c0:c1],
                gram[idx[k + 2], c0:c1],
                gram[idx[k + 3], c0:c1],
            )
            ge, gf, gg, gh = (
                gram[idx[k + 4], c0:c1],
                gram[idx[k + 5], c0:c1],
                gram[idx[k + 6], c0:c1],
                gram[idx[k + 7], c0:c1],
            )
            for j in range(c1 - c0):
                out[j] -= (
                    (a * np.float32(ga[j]) + b * np.float32(gb[j])) + (c * np.float32(gc[j]) + d * np.float32(gd[j]))
                ) + ((e * np.float32(ge[j]) + f * np.float32(gf[j])) + (g * np.float32(gg[j]) + h * np.float32(gh[j])))
            k += 8
        while k < m:
            a = np.float32(w[k] * scale[idx[k]])
            ga = gram[idx[k], c0:c1]
            for j in range(c1 - c0):
                out[j] -= a * np.float32(ga[j])
            k += 1


@compiled
def positive_maximum(values):
    """Largest value, or 0 where none is positive; floats above zero are ordered like their bits, whose maximum is quick."""
    bits, largest = values.view(np.int32), np.int32(0)
    for j in range(bits.shape[0]):
        largest = max(largest, bits[j])
    return np.array([largest], np.int32).view(np.float32)[0]


@compiled
def above(corr, bound, found):
    """Columns whose correlation exceeds `bound`; returns how many."""
    n = 0
    bound = np.float32(bound)
    for c0 in range(0, corr.shape[0], 64):
        block = corr[c0 : min(corr.shape[0], c0 + 64)]
        several = np.int32(0)
        for j in range(block.shape[0]):
            several += np.int32(block[j] > bound)
        if several > 0:
            for j in range(block.shape[0]):
                if block[j] > bound:
                    found[n] = c0 + j
                    n += 1
    return n
