"""A tensor that is still in a file, where it goes, and what is said about a file that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64  # bytes; torch's own memory begins at such addresses, and the last bits of products may depend on it
MESSAGE_AT_MOST = 2_000  # characters; names and values of a stranger's file stand in messages, and may have any length


def shortened(text: str, n_at_most: int = MESSAGE_AT_MOST) -> str:
    """Text with what a file says in it, fit for a terminal: printable, and not longer than a page."""
    cut = text if len(text) <= n_at_most else text[: n_at_most - 3] + "..."
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in cut)


class WeightFileError(ValueError):
    """A file that is damaged, of no known kind, or that asks for more than weights need."""

    def __init__(self, message: str):
        super().__init__(shortened(message))


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, known by shape and type and not read yet.

    Args:
        shape: of the tensor.
        dtype: of torch; None for a kind of numbers that is not known here.
        read: gives the tensor. Those that share a storage in the file share memory while any of them lives.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Tensor] = field(repr=False)


def memory(size: int) -> np.ndarray:
    """Bytes that are not set yet; numpy asks for large pages, which are filled twice as fast as those of torch."""
    whole = np.empty(size + ALIGNED, np.uint8)
    skipped = -whole.ctypes.data % ALIGNED
    return whole[skipped : skipped + size]


def all_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite; a sum is finite only where all its terms are, and is thirty times as fast."""
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())
