"""Looking through blocks of pre-activations by compiled loops, on the processor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vlsae.dictionaries import selection_kernels as kernels
from vlsae.dictionaries.selection import Products, Rows
from vlsae.threads import in_threads

ROOM = 4  # times k, the room for candidates of a rounded product


def top_k_of_block(products: Products, rows: slice, P: Tensor, k: int, signed: bool) -> Rows:
    """Each row's k largest pre-activations; see `selection.top_k`."""
    room = k if products.rounded is None else ROOM * k
    args = k, signed, products.margins[rows].numpy(), np.float32(products.relative)
    idx, val, count = _find(products, rows, P, min(room, P.shape[1]), kernels.candidates_of_rows, *args)
    in_threads(kernels.top_k_of_candidates, len(P), k, signed, not signed, idx, val, count)
    return _rows(idx, val, count)


def above(products: Products, rows: slice, P: Tensor, bounds: Tensor, room: int) -> Rows:
    """Each row's pre-activations above `bounds [b]`."""
    return _rows(*_find(products, rows, P, min(room, P.shape[1]), kernels.above, bounds.numpy()))


def _find(products: Products, rows: slice, P: Tensor, room: int, kernel: Callable, *args) -> tuple[np.ndarray, ...]:
    """Latents, values and counts of a block by a kernel; again with more room where a row needs it."""
    block = (P.view(torch.uint16) if P.dtype == torch.bfloat16 else P).numpy()
    bias = products.bias.numpy()
    while True:
        idx, val = np.empty((len(P), room), np.int32), np.empty((len(P), room), np.float32)
        count = np.empty(len(P), np.int64)
        in_threads(kernel, len(P), block, bias, *args, idx, val, count)
        if count.max(initial=0) <= room:
            break
        room = min(P.shape[1], 2 * int(count.max()))
    if products.rounded is not None:
        x, W = products.x[rows].numpy(), products.W.numpy()
        in_threads(kernels.rescore, len(P), x, W, bias, idx, val, count)
    return idx, val, count


def _rows(idx: np.ndarray, val: np.ndarray, count: np.ndarray) -> Rows:
    """From rows with room, `[b, room]` each, of which the first `count [b]` entries are used."""
    used = np.arange(idx.shape[1]) < count[:, None]
    return Rows.from_counts(torch.from_numpy(count), torch.from_numpy(idx[used]), torch.from_numpy(val[used]))
