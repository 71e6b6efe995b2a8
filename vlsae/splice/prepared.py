"""A concept dictionary made ready for solving: checked, contiguous, with the parts of its Gram matrix made so far."""

from __future__ import annotations

import threading
import weakref
from functools import cached_property

import numpy as np


class PreparedDictionary:
    """Rows of a dictionary and what solvers derive from them, kept between calls.

    Args:
        C: `[K, d]`, finite; computed with in float32. Rows of zeros are allowed and never used.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """

    def __init__(self, C):
        C = np.asarray(C.detach().cpu() if hasattr(C, "detach") else C)
        if C.ndim != 2 or 0 in C.shape:
            raise ValueError(f"The concept dictionary has shape {C.shape}; give [K, d], one concept a row.")
        self.C = np.ascontiguousarray(C, dtype=np.float32)
        norms = np.sqrt(np.einsum("kd,kd->k", self.C, self.C, dtype=np.float64))
        if not np.isfinite(norms).all():
            bad = int(np.flatnonzero(~np.isfinite(norms))[0])
            raise ValueError(f"Row {bad} of the concept dictionary holds NaN or infinite values; take it out.")
        self.norms = norms
        self.lock = threading.Lock()  # of the Gram rows, which are made on demand

    @property
    def shape(self) -> tuple[int, int]:
        return self.C.shape

    @cached_property
    def bounds(self) -> np.ndarray:
        """The largest norm, then that of every row, `[1 + K]`: what rounding errors are bounded with."""
        return np.concatenate([[self.norms.max()], self.norms])

    @cached_property
    def transposed(self) -> np.ndarray:
        """`[d, K]`, contiguous: the layout in which the first matrix product is fastest."""
        return np.ascontiguousarray(self.C.T)

    @cached_property
    def gram(self) -> np.ndarray:
        """`C C^T` in float32, `[K, K]`."""
        return self.C @ self.transposed

    @cached_property
    def quantised(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of `C C^T` as int8 `[K, K]`, their scales `[K]`, and which of them were made; memory is taken when written."""
        K = len(self.C)
        return np.zeros((K, K), np.int8), np.zeros(K, np.float32), np.zeros(K, np.bool_)


_last: tuple[weakref.ref, int, PreparedDictionary] | None = None


def prepare(C) -> PreparedDictionary:
    """The prepared form of a dictionary; the last one is remembered while its array lives with the same values."""
    global _last
    if isinstance(C, PreparedDictionary):
        return C
    if not hasattr(C, "detach"):
        C = np.asarray(C)
    array = np.ascontiguousarray(C.detach().cpu() if hasattr(C, "detach") else C)
    fingerprint = _fingerprint(array)
    if _last is not None and _last[0]() is C and _last[1] == fingerprint:
        return _last[2]
    prepared = PreparedDictionary(array)
    _last = weakref.ref(C, _forget), fingerprint, prepared
    return prepared


def _forget(reference: weakref.ref) -> None:
    global _last
    if _last is not None and _last[0] is reference:
        _last = None


def _fingerprint(array: np.ndarray) -> int:
    from vlsae.splice.solvers.working_set import checksum

    if array.dtype not in (np.float32, np.float64):
        return 0 if array.size == 0 else hash(array.tobytes())
    return int(checksum(array.reshape(-1).view(np.uint32)))
