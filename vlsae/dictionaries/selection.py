"""Sparse codes from one dense product at a time: nothing of the size tokens x latents is ever kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries import selection_kernels as kernels

CHUNK = 2**24  # pre-activations at a time: 64 MB
LEAST = 64  # tokens at a time: fewer would read all keys for little
PROBE = 64  # tokens that say where BatchTopK begins to look
ROOM = 4  # times k, the room for candidates of a rounded product
BFLOAT = 2.0**-8  # relative rounding error of bfloat16, with room


@dataclass
class Rows:
    """Codes of a batch, row after row.

    Attributes:
        ptr: int64 `[B + 1]`, where rows begin; idx: int32 `[nnz]`, latents, rising in a row; val: float32 `[nnz]`.
    """

    ptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray

    @classmethod
    def from_blocks(cls, idx: np.ndarray, val: np.ndarray, count: np.ndarray) -> Rows:
        """From rows with room, `[b, room]` each, of which the first `count [b]` entries are used."""
        used = np.arange(idx.shape[1]) < count[:, None]
        return cls(np.concatenate([[0], np.cumsum(count, dtype=np.int64)]), idx[used], val[used])

    @classmethod
    def concatenate(cls, parts: list[Rows]) -> Rows:
        """Rows after rows."""
        if not parts:
            return cls(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        lengths = np.concatenate([[0], *(np.diff(part.ptr) for part in parts)])
        idx, val = (np.concatenate([getattr(part, name) for part in parts]) for name in ("idx", "val"))
        return cls(np.cumsum(lengths, dtype=np.int64), idx, val)

    def keep(self, wanted: np.ndarray) -> Rows:
        """Only the entries that are wanted, bool `[nnz]`."""
        ends = np.concatenate([[0], np.cumsum(wanted, dtype=np.int64)])
        return Rows(ends[self.ptr], self.idx[wanted], self.val[wanted])


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


def in_threads(kernel: Callable, n: int, *args, least: int = 64) -> None:
    """`kernel(*args, lo, hi)` for shares of `range(n)`, on as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), n // least))
    if threads == 1:
        kernel(*args, 0, n)
        return
    cuts = [n * i // threads for i in range(threads + 1)]
    for done in [_pool(os.getpid()).submit(kernel, *args, lo, hi) for lo, hi in pairwise(cuts)]:
        done.result()


@dataclass
class Products:
    """`x W^T + bias` in blocks of rows, without its dense whole: each block is overwritten by the next.

    Attributes:
        x: `[B, d]`; W: `[n, d]`; bias: `[n]`; contiguous, float32, on the processor.
        rounded: `W` in bfloat16 where products are only to find candidates, whose values are computed again.
    """

    x: Tensor
    W: Tensor
    bias: Tensor
    rounded: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows and their products `[b, n]` without bias: float32, or the bits of bfloat16 as uint16 where rounded."""
        step = max(LEAST, CHUNK // len(self.W))
        keys = self.W if self.rounded is None else self.rounded
        out = torch.empty(min(step, len(self.x)), len(keys), dtype=keys.dtype)
        for begin in range(0, len(self.x), step):
            part = self.x[begin : begin + step]
            block = out[: len(part)]
            torch.mm(part.to(keys.dtype), keys.T, out=block)
            yield slice(begin, begin + len(part)), (block if self.rounded is None else block.view(torch.uint16)).numpy()

    @cached_property
    def margins(self) -> np.ndarray:
        """`[B]`, five standard deviations of the error of a rounded inner product's difference from another."""
        norms = self.x.norm(dim=1).numpy()
        if self.rounded is None:
            return np.zeros_like(norms)
        return norms * np.float32(4 * BFLOAT * float(self.W.norm(dim=1).max()) / self.x.shape[1] ** 0.5)

    @property
    def relative(self) -> np.float32:
        """The same for the rounding of the result, relative to it."""
        return np.float32(0 if self.rounded is None else BFLOAT)

    def find(self, rows: slice, P: np.ndarray, room: int, kernel: Callable, *args) -> tuple[np.ndarray, ...]:
        """Latents, values and counts of a block by a kernel; again with more room where a row needs it."""
        while True:
            idx, val = np.empty((len(P), room), np.int32), np.empty((len(P), room), np.float32)
            count = np.empty(len(P), np.int64)
            in_threads(kernel, len(P), P, self.bias.numpy(), *args, idx, val, count)
            if count.max(initial=0) <= room:
                break
            room = min(len(self.W), 2 * int(count.max()))
        if self.rounded is not None:
            x, W = self.x[rows].numpy(), self.W.numpy()
            in_threads(kernels.rescore, len(P), x, W, self.bias.numpy(), idx, val, count)
        return idx, val, count


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
    parts = []
    for rows, P in products.blocks():
        margins, room = products.margins[rows], k if products.rounded is None else ROOM * k
        args = k, signed, margins, products.relative
        found = products.find(rows, P, min(room, P.shape[1]), kernels.candidates_of_rows, *args)
        in_threads(kernels.top_k_of_candidates, len(P), k, signed, not signed, *found)
        parts.append(Rows.from_blocks(*found))
        if also is not None:
            also(rows, P)
    return Rows.concatenate(parts)


def positive(products: Products, bound: float = 0.0, room: int = 256, also: Callable | None = None) -> Rows:
    """All pre-activations above `bound` (at least 0); `room` a row is what memory is reserved for at first."""
    parts = []
    for rows, P in products.blocks():
        bounds = np.float32(bound) - products.margins[rows] - products.relative * np.float32(bound)
        found = Rows.from_blocks(*products.find(rows, P, room, kernels.above, bounds))
        parts.append(found if products.rounded is None else found.keep(found.val > bound))
        if also is not None:
            also(rows, P)
    return Rows.concatenate(parts)


def largest_of_batch(products: Products, k: int, guess: float = 0.0, also: Callable | None = None) -> Rows:
    """The `B k` largest positive pre-activations of a batch of `B`.

    Args:
        products: of tokens and keys.
        k: mean number a token.
        guess: a lower bound that is likely to hold, such as a share of the last batch's threshold; the batch is looked at
            again where it does not.
        also: as for `top_k`.
    """
    wanted = len(products.x) * k
    bound = guess if guess > 0 else _likely_bound(products, k)
    rows = positive(products, bound, room=8 * k, also=also)
    if len(rows.val) < wanted and bound > 0:
        rows = positive(products, 0.0, room=8 * k)
    if len(rows.val) <= wanted:
        return rows
    least = np.partition(rows.val, len(rows.val) - wanted)[len(rows.val) - wanted]
    keep = rows.val > least
    ties = np.flatnonzero(rows.val == least)
    keep[ties[: wanted - int(keep.sum())]] = True
    return rows.keep(keep)


def _likely_bound(products: Products, k: int) -> float:
    """A bound that about 2 k pre-activations a token exceed, from a few tokens."""
    probe = products.x[:: max(1, len(products.x) // PROBE)][:PROBE]
    scores = (probe @ products.W.T + products.bias).flatten()
    return max(0.0, float(scores.topk(min(len(scores), 2 * k * len(probe))).values[-1]))
