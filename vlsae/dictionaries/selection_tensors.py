"""Looking through blocks of pre-activations by torch operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from vlsae.dictionaries.selection import Products, Rows

CHUNK, ELSEWHERE = 2**24, 2**26  # numbers gathered at a time: 64 MB, and on other devices 256 MB
SPARE = 32  # looked at beyond k: ties, and what rounding may have put behind
GROUP = 16  # columns of which first only the largest is looked at


def top_k_of_block(products: Products, rows: slice, P: Tensor, k: int, signed: bool) -> Rows:
    """Each row's k largest pre-activations; see `selection.top_k`."""
    pre = P + products.bias  # float32, also of rounded products
    score = pre.abs() if signed else pre
    values, at = leaders(score, min(k + SPARE, score.shape[1]))
    least = values[:, k - 1]
    bounds = least - products.margins[rows] - products.relative * least.abs()
    if values.shape[1] == score.shape[1] or bool((values[:, -1] < bounds).all()):
        at = at.sort(1).values
        found = _where(products, rows, score.gather(1, at) >= bounds[:, None], pre.gather(1, at), at)
    else:  # more ties, or more within the margin, than were spared
        found = _where(products, rows, score >= bounds[:, None], pre)
    found = best(found, k, signed)
    return found.keep(found.val != 0 if signed else found.val > 0)


def leaders(score: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest of every row `[b, n]` and their columns, falling; of equal ones any.

    They lie in the m groups of columns with the largest maxima: whatever lies in another group is at most the least of these
    maxima, and so at most the least of the m. `torch.topk` then looks through the maxima and these groups alone.
    """
    b, n = score.shape
    if n < 4 * m * GROUP:
        return score.topk(m, dim=1)
    count = (
        n // GROUP
    )  # of groups; columns of one lie `count` apart, which is how they are quick to go through side by side
    groups = score[:, : count * GROUP].view(b, GROUP, count)
    chosen = groups.amax(1).topk(m, dim=1, sorted=False).indices[:, None]
    inside = torch.take_along_dim(groups, chosen, dim=2).flatten(1)
    columns = (chosen + count * torch.arange(GROUP, device=score.device)[:, None]).flatten(1)
    rest = torch.arange(count * GROUP, n, device=score.device).expand(b, -1)
    values, at = torch.cat([inside, score[:, count * GROUP :]], 1).topk(m, dim=1)
    return values, torch.cat([columns, rest], 1).gather(1, at)


def above(products: Products, rows: slice, P: Tensor, bounds: Tensor, room: int) -> Rows:
    """Each row's pre-activations above `bounds [b]`."""
    pre = P + products.bias
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
    step = max(1, (CHUNK if X.device.type == "cpu" else ELSEWHERE) // X.shape[1])
    parts = [(X[a] * W[o]).sum(1) for a, o in zip(at.split(step), of.split(step), strict=True)]
    return torch.cat(parts) if parts else X.new_empty(0)


def _where(products: Products, rows: slice, mask: Tensor, pre: Tensor, columns: Tensor | None = None) -> Rows:
    """The marked pre-activations `[b, m]`; computed again in single precision where the product was rounded.

    `columns [b, m]`, rising, are their latents; None where `m` is all of them.
    """
    at, idx = mask.nonzero(as_tuple=True)
    val = pre[at, idx]
    idx = idx if columns is None else columns[at, idx]
    if products.rounded is not None:
        val = inner_products(products.x[rows], at, products.W, idx) + products.bias[idx]
    return Rows.from_counts(mask.sum(1), idx.int(), val)
