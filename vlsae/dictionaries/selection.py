"""Sparse codes from one dense product at a time: nothing of the size tokens x latents is ever kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlsae import onednn

CHUNK = 6 * 2**20  # pre-activations at a time: 25 MB, which stay in the cache until they are looked through
ELSEWHERE = 2**27  # the same on other devices: 500 MB, where small blocks leave most of a GPU idle
LEAST = 64  # tokens at a time: fewer would read all keys for little
PROBE = 64  # tokens that say where BatchTopK begins to look
BFLOAT = 2.0**-8  # relative rounding error of bfloat16, with room


@dataclass
class Rows:
    """Codes of a batch, row after row.

    Attributes:
        ptr: int64 `[B + 1]`, where rows begin; idx: int32 `[nnz]`, latents, rising in a row; val: float32 `[nnz]`.
    """

    ptr: Tensor
    idx: Tensor
    val: Tensor

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def numbers(self) -> Tensor:
        """The row of every code, int64 `[nnz]`."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.ptr.device), self.ptr.diff())

    @classmethod
    def from_counts(cls, counts: Tensor, idx: Tensor, val: Tensor) -> Rows:
        """From the number of codes of every row, `[B]`, and the codes."""
        ptr = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=ptr[1:])
        return cls(ptr, idx, val)

    def keep(self, wanted: Tensor) -> Rows:
        """Only the codes that are wanted, bool `[nnz]`."""
        ends = torch.zeros(len(wanted) + 1, dtype=torch.int64, device=wanted.device)
        torch.cumsum(wanted, 0, out=ends[1:])
        return Rows(ends[self.ptr], self.idx[wanted], self.val[wanted])


class Collected:
    """Codes of one block of rows after the other, in memory that is taken beforehand.

    Small pieces kept between the blocks would lie in the memory of blocks already let go, and keep it from the next.

    Args:
        n_rows: of all blocks; capacity: codes that there is room for at first; device: of the codes.
    """

    def __init__(self, n_rows: int, capacity: int, device: torch.device):
        self.counts = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.idx = torch.empty(max(1, capacity), dtype=torch.int32, device=device)
        self.val = torch.empty(max(1, capacity), device=device)
        self.n_rows = self.n = 0

    def add(self, part: Rows) -> None:
        """Rows that follow those before."""
        end = self.n + len(part.val)
        if end > len(self.val):
            more = max(end, 2 * len(self.val)) - len(self.val)
            self.idx = torch.cat([self.idx, self.idx.new_empty(more)])
            self.val = torch.cat([self.val, self.val.new_empty(more)])
        self.counts[self.n_rows : self.n_rows + len(part)] = part.ptr.diff()
        self.idx[self.n : end], self.val[self.n : end] = part.idx, part.val
        self.n_rows, self.n = self.n_rows + len(part), end

    @property
    def rows(self) -> Rows:
        """All of them."""
        return Rows.from_counts(self.counts, self.idx[: self.n], self.val[: self.n])


@dataclass
class Products:
    """`x W^T + bias` in blocks of rows, without its dense whole: a block may be overwritten by the next.

    Attributes:
        x: `[B, d]`; W: `[n, d]`; bias: `[n]`; contiguous, float32, on one device.
        rounded: `W` in bfloat16 where products are only to find candidates, whose values are computed again.
    """

    x: Tensor
    W: Tensor
    bias: Tensor
    rounded: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their products `[b, n]` without bias, float32, or bfloat16 where rounded."""
        most = CHUNK if self.x.device.type == "cpu" else ELSEWHERE
        step = max(LEAST, most // len(self.W))
        keys = self.W if self.rounded is None else self.rounded
        one_dnn = keys.dtype == torch.float32 and keys.device.type == "cpu" and onednn.is_quick()
        out = None if one_dnn else keys.new_empty(min(step, len(self.x)), len(keys))
        for begin in range(0, len(self.x), step):
            part = self.x[begin : begin + step]
            if one_dnn:
                block = onednn.product(part, keys)
            else:
                block = torch.mm(part.to(keys.dtype), keys.T, out=out[: len(part)])
            yield slice(begin, begin + len(part)), block
            del block  # its memory is there for the next one, if the caller also lets go of it

    @cached_property
    def margins(self) -> Tensor:
        """`[B]`, five standard deviations of the error of a rounded inner product's difference from another."""
        norms = self.x.norm(dim=1)
        if self.rounded is None:
            return torch.zeros_like(norms)
        return norms * (4 * BFLOAT * self.W.norm(dim=1).max() / self.x.shape[1] ** 0.5)

    @property
    def relative(self) -> float:
        """The same for the rounding of the result, relative to it."""
        return 0.0 if self.rounded is None else BFLOAT

    @property
    def finder(self):
        """The module whose functions look through a block: compiled loops on the processor, torch elsewhere."""
        if self.x.device.type == "cpu":
            from vlsae.dictionaries import selection_compiled as finder
        else:
            from vlsae.dictionaries import selection_tensors as finder
        return finder


def top_k(products: Products, k: int, *, signed: bool = False, also: Callable | None = None) -> Rows:
    """The k largest pre-activations of every row, of them the positive ones; by size and of either sign if `signed`.

    Args:
        products: of tokens and keys.
        k: 1 to n.
        signed: choose by size and keep signs.
        also: called with the rows and every block of products while it is there.

    Returns:
        Codes; ties go to the lower latent.
    """
    found = Collected(len(products.x), len(products.x) * k, products.x.device)
    for rows, P in products.blocks():
        found.add(products.finder.top_k_of_block(products, rows, P, k, signed))
        if also is not None:
            also(rows, P)
        del P
    return found.rows


def positive(products: Products, bound: float = 0.0, room: int = 256, also: Callable | None = None) -> Rows:
    """All pre-activations above `bound` (at least 0); `room` a row is what memory is reserved for at first."""
    found = Collected(len(products.x), len(products.x) * room // 4, products.x.device)
    for rows, P in products.blocks():
        bounds = bound - products.margins[rows] - products.relative * bound
        part = products.finder.above(products, rows, P, bounds, room)
        found.add(part if products.rounded is None else part.keep(part.val > bound))
        if also is not None:
            also(rows, P)
        del P
    return found.rows


def largest(values: Tensor, wanted: int) -> Tensor:
    """Which of the values `[nnz]` are the `wanted` largest, bool; of equal ones the first."""
    if len(values) <= wanted:
        return torch.ones_like(values, dtype=torch.bool)
    place = len(values) - wanted
    least = (
        values.kthvalue(place + 1).values if values.device.type == "cpu" else values.sort().values[place]
    )  # far quicker there
    keep = values > least
    ties = (values == least).nonzero()[:, 0]
    keep[ties[: wanted - int(keep.sum())]] = True
    return keep


def likely_bound(products: Products, wanted: int) -> float:
    """A bound that about twice the wanted number of pre-activations exceed, from a few tokens."""
    n = len(products.x)
    probe = products.x[:: max(1, n // PROBE)][:PROBE]
    scores = (probe @ products.W.T + products.bias).flatten()
    likely = min(len(scores), -(-2 * wanted * len(probe) // max(1, n)))
    return max(0.0, float(scores.topk(likely).values[-1])) if likely else 0.0
