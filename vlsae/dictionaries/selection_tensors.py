"""Looking through blocks of pre-activations by torch operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.selection import Products, Rows

CHUNK = 2**24  # numbers gathered at a time: 64 MB


def top_k_of_block(products: Products, rows: slice, P: Tensor, k: int, signed: bool) -> Rows:
    """Each row's k largest pre-activations; see `selection.top_k`."""
    pre = P.float() + products.bias
    score = pre.abs() if signed else pre
    least = score.topk(k, sorted=False).values.amin(1)
    bounds = least - products.margins[rows] - products.relative * least.abs()
    found = best(_where(products, rows, score >= bounds[:, None], pre), k, signed)
    return found.keep(found.val != 0 if signed else found.val > 0)


def above(products: Products, rows: slice, P: Tensor, bounds: Tensor, room: int) -> Rows:
    """Each row's pre-activations above `bounds [b]`."""
    pre = P.float() + products.bias
    return _where(products, rows, pre > bounds[:, None], pre)


def best(rows: Rows, k: int, signed: bool = False) -> Rows:
    """At most k codes of every row: the largest, or the largest in size; of equal ones the first."""
    counts = rows.ptr.diff()
    if int(counts.max()) <= k:
        return rows
    place = torch.arange(len(rows.val), device=rows.val.device) - rows.ptr[rows.numbers]
    scores = rows.val.new_full((len(rows), int(counts.max())), -torch.inf)
    scores[rows.numbers, place] = rows.val.abs() if signed else rows.val
    return rows.keep(best_of_columns(scores, k)[rows.numbers, place])


def best_of_columns(scores: Tensor, k: int) -> Tensor:
    """Which entries are among the k largest of their row `[b, m]`, bool; of equal ones the first."""
    if scores.shape[1] <= k:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(k, sorted=False).values.amin(1, keepdim=True)
    above, ties = scores > least, scores == least
    return above | (ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True)))


def inner_products(X: Tensor, at: Tensor, W: Tensor, of: Tensor) -> Tensor:
    """`X[at] . W[of]` a pair of rows, `[pairs]`, a part at a time."""
    step = max(1, CHUNK // X.shape[1])
    parts = [(X[a] * W[o]).sum(1) for a, o in zip(at.split(step), of.split(step), strict=True)]
    return torch.cat(parts) if parts else X.new_empty(0)


def _where(products: Products, rows: slice, mask: Tensor, pre: Tensor) -> Rows:
    """The marked pre-activations `[b, n]`; computed again in single precision where the product was rounded."""
    at, idx = mask.nonzero(as_tuple=True)
    val = pre[at, idx]
    if products.rounded is not None:
        val = inner_products(products.x[rows], at, products.W, idx) + products.bias[idx]
    return Rows.from_counts(mask.sum(1), idx.int(), val)
