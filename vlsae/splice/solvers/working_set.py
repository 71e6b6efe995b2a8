"""Compiled inner steps of the active-set solver: pick violators, fit the working set, certify.

Every function works on one sample with correlations `c = C r` of its residual `r = z - w C`; `lam = l1 / 2`.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from vlsae.splice.solvers.kernels import above, compiled, dot32, dot64, four_dots, positive_maximum, sweep

PIVOT = 1e-5  # relative Cholesky pivot below which columns, in single precision, look dependent
RIDGE = 1e-11  # added to the diagonal, relative, in double precision: decides between dependent columns

DONE, MISSING, FULL, STALLED = 0, 1, 2, 3

Samples = namedtuple("Samples", "idx w size status rounds gap precise best idle level")  # one row a sample
Scratch = namedtuple("Scratch", "corr found A L b x y keep r exact")  # of one thread

STRONG = 0.25  # share of the strongest violation that a column needs to be added
ROUGH = 1e-5  # violation relative to the penalty, and
NOISE = 1e-6  # relative to norms, below which single precision is at its end
PROGRESS = 1e-14  # of ||z||^2: what the objective must improve by, or a round was idle
IDLE = 3  # idle rounds in double precision after which violators are held to be rounding errors


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
def factor(A, L, start, m, precise):
    """Rows `start..m` of the Cholesky factor of `A`; returns whether columns look dependent.

    In double precision a ridge keeps the factor regular. In single precision it cannot: errors of `A` exceed it, and
    grow with every dependent column.
    """
    ridge, least, dependent = (RIDGE, 0.5 * RIDGE, False) if precise else (0.0, PIVOT, False)
    for i in range(start, m):
        for j in range(i):
            L[i, j] = (A[i, j] - dot64(L[i, :j], L[j, :j])) / L[j, j]
        pivot, least_here = (1.0 + ridge) * A[i, i] - dot64(L[i, :i], L[i, :i]), least * max(A[i, i], 1e-30)
        if pivot < least_here:
            pivot, dependent = least_here, True
        L[i, i] = np.sqrt(pivot)
    return dependent


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
def fit(idx, w, m, start, precise, s):
    """Minimise over the working set with `w >= 0` (Lawson and Hanson 1974, chapter 23), from a feasible `w`.

    The first `start` rows of the factor are valid. Places that reach zero leave the set; returns its new size, or -1
    with nothing done where columns look dependent in single precision.
    """
    if factor(s.A, s.L, start, m, precise) and not precise:
        return -1
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
            if not (i == blocked or (s.x[i] <= 0 and w[i] <= 0)):
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
    """Duality gap of `||z - wC||^2 + 2 lam sum(w)`, and this objective, all of it in double precision.

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
    return max((1.0 + t * t) * rr + 2.0 * lam * total - 2.0 * t * rz, 0.0), rr + 2.0 * lam * total


@compiled
def polish(idx, w, m, lam, norms, s):
    """One step of iterative refinement: solve again for what the exact correlations miss.

    Returns a bound of how far any correlation moved; 0 where a weight would have to leave and nothing was done.
    """
    for k in range(m):
        s.y[k] -= lam
    solve_factored(s.L, s.y.copy(), m, s.y, s.x)
    for k in range(m):
        if w[k] + s.x[k] <= 0:
            return 0.0
    moved = 0.0
    for k in range(m):
        new = np.float64(np.float32(w[k] + s.x[k]))
        moved += abs(new - w[k]) * norms[1 + idx[k]]
        w[k] = new
    return moved * norms[0]


@compiled
def grow(z, C, norms, lam, slack, tol, take, idx, w, m, s):
    """Add the strongest violators to the working set, or find that there are none.

    `corr` is known up to `slack`. Columns that surely violate are added at once; where none does, those that might
    are computed exactly and the sample is certified.

    Returns:
        The new size; the gap and the objective of the weights so far, the gap negative where it was not computed; and
        whether the violators are so slight that the working set has to be fitted in double precision.
    """
    strong = STRONG * (positive_maximum(s.corr) - lam)
    n = sure = 0
    if strong > slack:
        n = sure = without(s.found, above(s.corr, lam + strong, s.found), idx, m)
    gap, value, slight = -1.0, 0.0, False
    if sure == 0:
        n = without(s.found, above(s.corr, lam - slack, s.found), idx, m)
        for k in range(m):
            w[k] = np.float64(np.float32(w[k]))
        gap, value = certify(z, C, idx, w, m, n, lam, s)
        worst = strongest(s.exact, n)
        for _ in range(2):
            if gap <= 0.5 * tol or worst > lam:
                break
            moved = polish(idx, w, m, lam, norms, s)
            if moved == 0.0:
                break
            slack += moved
            n = without(s.found, above(s.corr, lam - slack, s.found), idx, m)
            gap, value = certify(z, C, idx, w, m, n, lam, s)
            worst = strongest(s.exact, n)
        if gap <= 0.5 * tol:
            return m, gap, value, False
        slight = worst < lam * (1.0 + ROUGH) + NOISE * norms[0] * np.sqrt(dot64(z, z))
        for t in range(n):
            s.corr[s.found[t]] = s.exact[t]
            if s.exact[t] > lam:
                sure += 1
    take = min(take, sure, idx.shape[0] - m)
    largest_first(s.corr, s.found, n, take)
    for t in range(take):
        idx[m], w[m] = s.found[t], 0.0
        m += 1
    return m, gap, value, slight


@compiled
def strongest(values, n):
    """The largest of the first `n` values, or 0."""
    largest = 0.0
    for t in range(n):
        largest = max(largest, values[t])
    return largest


@compiled
def is_over(samples, r, gap, value, tol, zz, added, precise):
    """Whether a sample with this gap and objective is done; counts idle rounds.

    In double precision it is done, besides, when there is nothing to add, or when what was added has not helped for
    some rounds: then the weights' rounding to single precision is what is left.
    """
    if value < samples.best[r] - PROGRESS * zz:
        samples.best[r], samples.idle[r] = value, 0
    else:
        samples.idle[r] += 1
    over = gap <= 0.5 * tol or (precise and (not added or samples.idle[r] > IDLE))
    if over:
        samples.gap[r], samples.status[r] = gap, DONE
    return over


@compiled
def advance(rows, Z, Q, C, gram, scale, made, norms, lams, tol, first, more, samples, s, max_rounds):
    """Run samples to their certified end, or until they need a row of the Gram matrix or a larger working set.

    `norms[0]` is the largest norm of a column, `norms[1 + k]` that of column `k`.
    """
    unit = 6e-8 * (Z.shape[1] + 64) * norms[0]
    for r in rows:
        idx, w, m, z, lam = samples.idx[r], samples.w[r], samples.size[r], Z[r], lams[r]
        start, precise, zz = 0, samples.precise[r], dot64(Z[r], Z[r])
        samples.status[r] = STALLED
        while samples.rounds[r] < max_rounds:
            extend_gram(C, z, Q[r], idx, start, m, lam, precise, s)
            fitted = fit(idx, w, m, start, precise, s)
            if fitted < 0:
                start, precise = 0, True
                continue
            m, slack, missing = fitted, unit * np.sqrt(zz), False
            for k in range(m):
                missing = missing or not made[idx[k]]
                slack += w[k] * (0.5 * scale[idx[k]] + unit * norms[1 + idx[k]])
            if missing:
                samples.status[r] = MISSING
                break
            if m + max(first, more, m // 6) > samples.level[r]:  # begin as after a break, whether or not there is one
                samples.level[r] *= 2
                if samples.level[r] > idx.shape[0]:
                    samples.status[r] = FULL
                    break
                start = 0
                continue
            sweep(Q[r], gram, scale, idx, w, m, s.corr)
            samples.rounds[r] += 1
            take = first if m == 0 else max(more, m // 6)
            larger, gap, value, slight = grow(z, C, norms, lam, slack, tol[r], take, idx, w, m, s)
            start = m
            if gap >= 0:
                if is_over(samples, r, gap, value, tol[r], zz, larger > m, precise):
                    break
                if not precise and (slight or larger == m or samples.idle[r] > 0):
                    start, precise = 0, True
            m = larger
        samples.size[r], samples.precise[r] = m, precise


@compiled
def advance_once(rows, Z, corr, C, norms, lams, tol, first, more, samples, s, R, max_rounds):
    """One round with correlations from a matrix product; leaves the new residuals in `R`."""
    unit = 6e-8 * (Z.shape[1] + 64) * norms[0]
    for i, r in enumerate(rows):
        idx, w, m, z, lam = samples.idx[r], samples.w[r], samples.size[r], Z[r], lams[r]
        s.corr[:] = corr[i]
        extend_gram(C, z, s.corr, idx, 0, m, lam, True, s)
        factor(s.A, s.L, 0, m, True)
        samples.status[r] = MISSING
        if m + max(first, more, m // 6) > idx.shape[0]:
            samples.status[r] = FULL
            continue
        samples.rounds[r] += 1
        zz, take = dot64(z, z), first if m == 0 else max(more, m // 6)
        slack = unit * np.sqrt(zz)
        for k in range(m):
            slack += unit * w[k] * norms[1 + idx[k]]
        larger, gap, value, _ = grow(z, C, norms, lam, slack, tol[r], take, idx, w, m, s)
        if gap >= 0 and is_over(samples, r, gap, value, tol[r], zz, larger > m, True):
            continue
        if samples.rounds[r] >= max_rounds:
            samples.status[r] = STALLED
            continue
        extend_gram(C, z, s.corr, idx, m, larger, lam, True, s)
        samples.size[r] = fit(idx, w, larger, m, True, s)
        residual(z, C, idx, w, samples.size[r], s.r)
        R[r, :] = s.r
