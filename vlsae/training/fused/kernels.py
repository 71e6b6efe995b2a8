"""Compiled loops of a training step over sparse codes: reconstruction and gradients a token, Adam an atom."""

from __future__ import annotations

import numpy as np

from vlsae.dictionaries.selection_kernels import compiled


@compiled
def reconstruct(Y, W, b_dec, ptr, idx, val, ends, weights, scale, G, R, u, loss, lo, hi):
    """Errors of nested reconstructions of tokens `lo` to `hi`, and their gradients.

    With groups of latents that end at `ends`, the reconstruction of prefix `g` is `b_dec + sum_{i < ends[g]} z_i W_i`;
    its error has weight `weights[g] scale[t]`. `G[t, g]` is the gradient of the loss towards whatever only prefixes from
    `g` on contain, `u` the gradient towards every code, `R[t]` what the whole leaves, `xhat - y`.
    """
    d, groups = Y.shape[1], len(ends)
    acc = np.empty(d, np.float32)
    stop = np.empty(groups + 1, np.int64)
    for t in range(lo, hi):
        for j in range(d):
            acc[j] = b_dec[j] - Y[t, j]
        p, total = ptr[t], np.float32(0.0)
        stop[0] = p
        for g in range(groups):
            while p < ptr[t + 1] and idx[p] < ends[g]:
                v, w = val[p], W[idx[p]]
                for j in range(d):
                    acc[j] += v * w[j]
                p += 1
            stop[g + 1] = p
            out, square = G[t, g], np.float32(0.0)
            factor = np.float32(2.0) * weights[g] * scale[t]
            for j in range(d):
                square += acc[j] * acc[j]
                out[j] = factor * acc[j]
            total += weights[g] * scale[t] * square
        loss[t] = total
        R[t] = acc
        for g in range(groups - 2, -1, -1):
            for j in range(d):
                G[t, g, j] += G[t, g + 1, j]
        for g in range(groups):
            out = G[t, g]
            for q in range(stop[g], stop[g + 1]):
                w, a = W[idx[q]], np.float32(0.0)
                for j in range(d):
                    a += out[j] * w[j]
                u[q] = a


@compiled
def by_latent(idx, n, start, order):
    """Counting sort of entries by their latent: those of latent `f` are `order[start[f] : start[f + 1]]`."""
    start[:] = 0
    for p in range(len(idx)):
        start[idx[p] + 1] += 1
    for f in range(n):
        start[f + 1] += start[f]
    place = start[:n].copy()
    for p in range(len(idx)):
        f = idx[p]
        order[place[f]] = p
        place[f] += 1


@compiled
def _gather(f, X, G, W, token, row, val, u, start, order, unit, for_atom, for_key):
    """Gradients of atom and key `f`. A unit atom's has no part along the atom."""
    d = X.shape[1]
    for j in range(d):
        for_atom[j] = 0
        for_key[j] = 0
    for p in range(start[f], start[f + 1]):
        e = order[p]
        v, a, g, x = val[e], u[e], G[row[e]], X[token[e]]
        for j in range(d):
            for_atom[j] += v * g[j]
            for_key[j] += a * x[j]
    if unit:
        along = np.float32(0.0)
        for j in range(d):
            along += for_atom[j] * W[f, j]
        for j in range(d):
            for_atom[j] -= along * W[f, j]


@compiled
def gradient_norms(X, G, W, token, row, val, u, start, order, unit, squares, lo, hi):
    """Squared norm of the two gradients of every latent from `lo` to `hi`."""
    d = X.shape[1]
    for_atom, for_key = np.empty(d, np.float32), np.empty(d, np.float32)
    for f in range(lo, hi):
        total = np.float32(0.0)
        if start[f + 1] > start[f]:
            _gather(f, X, G, W, token, row, val, u, start, order, unit, for_atom, for_key)
            for j in range(d):
                total += for_atom[j] * for_atom[j] + for_key[j] * for_key[j]
        squares[f] = total


@compiled
def _adam(w, m, v, g, clip, shrink, rate, beta1, beta2, root, eps):
    """One step of Adam on a row; returns the row's new squared norm."""
    one, two = np.float32(1.0) - beta1, np.float32(1.0) - beta2
    norm = np.float32(0.0)
    for j in range(w.shape[0]):
        a = clip * g[j]
        mean, spread = beta1 * m[j] + one * a, beta2 * v[j] + two * a * a
        m[j], v[j] = mean, spread
        y = shrink * w[j] - rate * mean / (np.sqrt(spread) * root + eps)
        w[j] = y
        norm += y * y
    return norm


@compiled
def update(
    X,
    G,
    W,
    token,
    row,
    val,
    u,
    start,
    order,
    unit,
    Wm,
    Wv,
    E,
    Em,
    Ev,
    clip,
    shrink,
    rate,
    beta1,
    beta2,
    root,
    eps,
    lo,
    hi,
):
    """Adam for atoms `W` and keys `E`, rows `lo` to `hi`, moments of silent latents included."""
    d = X.shape[1]
    for_atom, for_key = np.empty(d, np.float32), np.empty(d, np.float32)
    for f in range(lo, hi):
        _gather(f, X, G, W, token, row, val, u, start, order, unit, for_atom, for_key)
        norm = _adam(W[f], Wm[f], Wv[f], for_atom, clip, shrink, rate, beta1, beta2, root, eps)
        if unit:
            scale = np.float32(1.0) / np.sqrt(max(norm, np.float32(1e-24)))
            for j in range(d):
                W[f, j] *= scale
        _adam(E[f], Em[f], Ev[f], for_key, clip, shrink, rate, beta1, beta2, root, eps)
