"""A concept dictionary made ready for solving: checked, contiguous, with the parts of its Gram matrix made so far."""

from __future__ import annotations

import threading
import weakref
from functools import cached_property

import numpy as np

SCALES = (1e-15, 1e15)  # of the longest row: beyond, products of single precision become 0 or infinite


def _array(C) -> np.ndarray:
    """An array of anything; numpy has no bfloat16."""
    if hasattr(C, "detach"):
        C = C.detach().cpu()
        C = C.float() if C.is_floating_point() and C.element_size() < 4 else C
    return np.asarray(C)


class PreparedDictionary:
    """Rows of a dictionary and what solvers derive from them, kept between calls.

    Args:
        C: `[K, d]`, finite; computed with in float32. Rows of zeros are allowed and never used.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """

    def __init__(self, C):
        from vlsae.splice.solvers.kernels import row_norms

        C = _array(C)
        if C.ndim != 2 or 0 in C.shape:
            raise ValueError(f"The concept dictionary has shape {C.shape}; give [K, d], one concept a row.")
        self.C = np.array(C, dtype=np.float32, order="C")  # a copy: the array given may change, or be read-only
        self.norms = row_norms(self.C)
        if not np.isfinite(self.norms).all():
            bad = int(np.flatnonzero(~np.isfinite(self.norms))[0])
            raise ValueError(f"Row {bad} of the concept dictionary holds NaN or infinite values; take it out.")
        if not (self.norms.max() == 0 or SCALES[0] <= self.norms.max() <= SCALES[1]):
            raise ValueError(
                f"The longest row of the concept dictionary has norm {self.norms.max():.3g}, whose square single precision "
                "cannot hold; scale the dictionary, usually to rows of norm 1."
            )
        self.seen = 0  # samples solved so far
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
        import torch

        return torch.from_numpy(self.C).T.contiguous().numpy()  # numpy's own copy takes four times as long

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
    array = np.ascontiguousarray(_array(C))
    fingerprint = _fingerprint(array)
    last = _last  # read once: another thread may replace it
    if last is not None and last[0]() is C and last[1] == fingerprint:
        return last[2]
    prepared = PreparedDictionary(array)
    _last = weakref.ref(C, _forget), fingerprint, prepared
    return prepared


def _forget(reference: weakref.ref) -> None:
    global _last
    last = _last
    if last is not None and last[0] is reference:
        _last = None


def _fingerprint(array: np.ndarray) -> int:
    from vlsae.splice.solvers.kernels import checksum

    if array.dtype not in (np.float32, np.float64):
        return 0 if array.size == 0 else hash(array.tobytes())
    return int(checksum(array.reshape(-1).view(np.uint32)))
