"""Compiled inner steps of the active-set solver: pick violators, fit the working set, certify.

Every function works on one sample with correlations `c = C r` of its residual `r = z - w C`; `lam = l1 / 2`.
Sums may be reassociated (fast-math): inputs are finite by then, and the certificate bounds every rounding error.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import njit

FAST = {"contract", "reassoc", "nnan", "ninf", "nsz", "arcp"}
BLOCK = 2048  # columns of a sweep: eight rows of int8 and the output stay in the first-level cache
PIVOT = 1e-7  # smallest relative Cholesky pivot; single-precision inner products cannot tell less from dependence

DONE, MISSING, FULL, STALLED = 0, 1, 2, 3

Samples = namedtuple("Samples", "idx w size status rounds gap precise")  # one row a sample: its working set and outcome
Scratch = namedtuple("Scratch", "corr found A L b x y keep r exact")  # of one thread

STRONG = 0.25  # share of the strongest violation that a column needs to be added
ROUGH = 1e-5  # relative violation below which single precision is at its end

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


@compiled
def checksum(words):
    """Of the values and their order."""
    total, place = np.uint64(0), np.uint64(0)
    for i in range(words.shape[0]):
        place += np.uint64(0x9E3779B97F4A7C15)
        total += (np.uint64(words[i]) + np.uint64(1)) * (place | np.uint64(1))
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


@compiled
def without(found, n, idx, m):
    """Take the working set out of a list of columns; returns how many stay."""
    kept = 0
    for t in range(n):
        new = True
        for k in range(m):
            if idx[k] == found[t]:
                new = False
                break
        if new:
            found[kept] = found[t]
            kept += 1
    return kept


@compiled
def largest_first(corr, found, n, take):
    """Bring the `take` largest of the listed columns to the front."""
    for t in range(take):
        best = t
        for u in range(t + 1, n):
            if corr[found[u]] > corr[found[best]]:
                best = u
        found[t], found[best] = found[best], found[t]


@compiled
def residual(z, C, idx, w, m, r):
    """`r = z - sum_k w_k C[idx_k]` in double precision."""
    for i in range(z.shape[0]):
        r[i] = z[i]
    for k in range(m):
        row, weight = C[idx[k]], w[k]
        for i in range(z.shape[0]):
            r[i] -= weight * row[i]


@compiled
def extend_gram(C, z, q, idx, start, m, lam, precise, s):
    """Rows `start..m` of the working set's Gram matrix and right-hand side, exactly or from single precision."""
    for i in range(start, m):
        row, k = C[idx[i]], 0
        while not precise and k + 4 <= i + 1:
            s.A[i, k], s.A[i, k + 1], s.A[i, k + 2], s.A[i, k + 3] = four_dots(
                row, C[idx[k]], C[idx[k + 1]], C[idx[k + 2]], C[idx[k + 3]]
            )
            k += 4
        while k <= i:
            s.A[i, k] = dot64(C[idx[k]], row) if precise else dot32(C[idx[k]], row)
            k += 1
        s.b[i] = (dot64(row, z) if precise else q[idx[i]]) - lam


@compiled
def factor(A, L, start, m):
    """Rows `start..m` of the Cholesky factor of `A`; a pivot never falls below `PIVOT`."""
    for i in range(start, m):
        for j in range(i):
            L[i, j] = (A[i, j] - dot64(L[i, :j], L[j, :j])) / L[j, j]
        L[i, i] = np.sqrt(max(A[i, i] - dot64(L[i, :i], L[i, :i]), PIVOT * max(A[i, i], 1e-30)))


@compiled
def solve_factored(L, b, m, y, x):
    for i in range(m):
        y[i] = (b[i] - dot64(L[i, :i], y[:i])) / L[i, i]
    for i in range(m):
        x[i] = y[i]
    for i in range(m - 1, -1, -1):
        x[i] /= L[i, i]
        for k in range(i):
            x[k] -= L[i, k] * x[i]


@compiled
def leave(L, place, m):
    """The factor without one place: its row goes, and rotations bring the rows below back to triangular form."""
    for p in range(place, m - 1):
        for k in range(p + 2):
            L[p, k] = L[p + 1, k]
    for k in range(place, m - 1):
        length = np.sqrt(L[k, k] * L[k, k] + L[k, k + 1] * L[k, k + 1])
        cos, sin = L[k, k] / length, L[k, k + 1] / length
        for p in range(k, m - 1):
            a, b = L[p, k], L[p, k + 1]
            L[p, k] = cos * a + sin * b
            L[p, k + 1] = cos * b - sin * a


@compiled
def drop(kept, A, b, idx, w, keep):
    """Keep only the listed places of the working set."""
    for i in range(kept):
        old = keep[i]
        for k in range(i + 1):
            A[i, k] = A[old, keep[k]]
        b[i], w[i], idx[i] = b[old], w[old], idx[old]


@compiled
def fit(idx, w, m, start, s):
    """Minimise over the working set with `w >= 0` (Lawson and Hanson 1974, chapter 23), from a feasible `w`.

    The first `start` rows of the factor are valid. Places that reach zero leave the set; returns its new size.
    """
    factor(s.A, s.L, start, m)
    while m > 0:
        solve_factored(s.L, s.b, m, s.y, s.x)
        step, blocked = 1.0, -1
        for i in range(m):
            if s.x[i] <= 0:
                down = w[i] - s.x[i]
                ratio = w[i] / down if down > 0 else 0.0
                if blocked < 0 or ratio < step:
                    step, blocked = ratio, i
        if blocked < 0:
            for i in range(m):
                w[i] = s.x[i]
            return m
        kept = 0
        for i in range(m):
            w[i] += step * (s.x[i] - w[i])
            if not (i == blocked or (s.x[i] <= 0 and w[i] <= 1e-12)):
                s.keep[kept] = i
                kept += 1
        place = kept - 1
        for i in range(m - 1, -1, -1):
            if place >= 0 and s.keep[place] == i:
                place -= 1
            else:
                leave(s.L, i, m)
                m -= 1
        drop(kept, s.A, s.b, idx, w, s.keep)
    return m


@compiled
def certify(z, C, idx, w, m, n_found, lam, s):
    """Duality gap of `||z - wC||^2 + 2 lam sum(w)`, all of it in double precision.

    `t r` with `t = min(1, lam / max_j C_j.r)` is dual feasible. Columns outside the working set and the list `found`
    are known to stay below `lam`. `exact` keeps the correlations of the list, `y` those of the working set.
    """
    residual(z, C, idx, w, m, s.r)
    largest, total = lam, 0.0
    for k in range(m):
        s.y[k] = dot64(C[idx[k]], s.r)
        largest = max(largest, s.y[k])
        total += w[k]
    for t in range(n_found):
        s.exact[t] = dot64(C[s.found[t]], s.r)
        largest = max(largest, s.exact[t])
    rr, rz, t = dot64(s.r, s.r), dot64(z, s.r), lam / largest
    return (1.0 + t * t) * rr + 2.0 * lam * total - 2.0 * t * rz


@compiled
def polish(idx, w, m, lam, s):
    """One step of iterative refinement: solve again for what the exact correlations miss."""
    for k in range(m):
        s.y[k] -= lam
    solve_factored(s.L, s.y.copy(), m, s.y, s.x)
    for k in range(m):
        if w[k] + s.x[k] <= 0:
            return
    for k in range(m):
        w[k] = np.float64(np.float32(w[k] + s.x[k]))


@compiled
def grow(z, C, lam, slack, tol, take, idx, w, m, s):
    """Add the strongest violators to the working set, or find that there are none.

    `corr` is known up to `slack`. Columns that surely violate are added at once; where none does, those that might
    are computed exactly, and without a violator the sample is certified.

    Returns:
        The new size, the gap (negative while violators were added), and whether they are so slight that the
        working set has to be fitted in double precision.
    """
    strong = STRONG * (positive_maximum(s.corr) - lam)
    n = sure = 0
    if strong > slack:
        n = sure = without(s.found, above(s.corr, lam + strong, s.found), idx, m)
    exactly = sure == 0
    gap = -1.0
    if exactly:
        n = without(s.found, above(s.corr, lam - slack, s.found), idx, m)
        for k in range(m):
            w[k] = np.float64(np.float32(w[k]))
        gap = certify(z, C, idx, w, m, n, lam, s)
        for _ in range(2):
            worst = 0.0
            for t in range(n):
                worst = max(worst, s.exact[t])
            if gap <= 0.5 * tol or worst > lam or m == 0:
                break
            polish(idx, w, m, lam, s)
            gap = certify(z, C, idx, w, m, n, lam, s)
        if gap <= 0.5 * tol:
            return m, max(gap, 0.0), False
        sure = 0
        for t in range(n):
            s.corr[s.found[t]] = s.exact[t]
            if s.exact[t] > lam:
                sure += 1
        if sure == 0:
            return m, max(gap, 0.0), False
    take = min(take, sure, idx.shape[0] - m)
    largest_first(s.corr, s.found, n, take)
    exactly = exactly and s.corr[s.found[0]] < lam * (1.0 + ROUGH)
    for t in range(take):
        idx[m], w[m] = s.found[t], 0.0
        m += 1
    return m, -1.0, exactly


@compiled
def advance(rows, Z, Q, C, gram, scale, made, norms, lams, tol, first, more, samples, s, max_rounds):
    """Run samples to their certified end, or until they need a row of the Gram matrix or a larger working set.

    `norms[0]` is the largest norm of a column, `norms[1 + k]` that of column `k`.
    """
    unit = 6e-8 * Z.shape[1] * norms[0]
    for r in rows:
        idx, w, m, z, lam = samples.idx[r], samples.w[r], samples.size[r], Z[r], lams[r]
        start, precise = 0, samples.precise[r]
        samples.status[r] = STALLED
        while samples.rounds[r] < max_rounds:
            extend_gram(C, z, Q[r], idx, start, m, lam, precise, s)
            m = fit(idx, w, m, start, s)
            slack = unit * np.sqrt(dot64(z, z))
            missing = False
            for k in range(m):
                missing = missing or not made[idx[k]]
                slack += w[k] * (0.5 * scale[idx[k]] + unit * norms[1 + idx[k]])
            if missing or m + max(first, more, m // 6) > idx.shape[0]:
                samples.status[r] = MISSING if missing else FULL
                break
            sweep(Q[r], gram, scale, idx, w, m, s.corr)
            samples.rounds[r] += 1
            start = m
            m, gap, exactly = grow(z, C, lam, slack, tol[r], first if m == 0 else max(more, m // 6), idx, w, m, s)
            if gap >= 0:
                samples.gap[r], samples.status[r] = gap, DONE
                break
            if exactly and not precise:
                start, precise = 0, True
        samples.size[r], samples.precise[r] = m, precise


@compiled
def advance_once(rows, Z, corr, C, norms, lams, tol, first, more, samples, s, R, max_rounds):
    """One round with correlations from a matrix product; leaves the new residuals in `R`."""
    unit = 6e-8 * Z.shape[1] * norms[0]
    for i, r in enumerate(rows):
        idx, w, m, z, lam = samples.idx[r], samples.w[r], samples.size[r], Z[r], lams[r]
        s.corr[:] = corr[i]
        extend_gram(C, z, s.corr, idx, 0, m, lam, True, s)
        factor(s.A, s.L, 0, m)
        samples.status[r] = MISSING
        if m + max(first, more, m // 6) > idx.shape[0]:
            samples.status[r] = FULL
            continue
        samples.rounds[r] += 1
        slack, take = unit * np.sqrt(dot64(z, z)), first if m == 0 else max(more, m // 6)
        larger, gap, _ = grow(z, C, lam, slack, tol[r], take, idx, w, m, s)
        if gap >= 0:
            samples.gap[r], samples.status[r] = gap, DONE
        elif samples.rounds[r] >= max_rounds:
            samples.status[r] = STALLED
        else:
            extend_gram(C, z, s.corr, idx, m, larger, lam, True, s)
            samples.size[r] = fit(idx, w, larger, m, s)
            residual(z, C, idx, w, samples.size[r], s.r)
            R[r, :] = s.r
