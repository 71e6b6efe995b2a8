"""Activations that are a tensor in memory, read like a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vlsae.activations.format import StoreError
from vlsae.activations.reader import ReaderState


class TensorActivations:
    """`x [N, d]` (or `[images, tokens, d]`, flattened) with the reading methods of a store.

    Raises:
        StoreError: for another shape, or values that are not finite.
    """

    def __init__(self, x: Tensor):
        if x.ndim not in (2, 3) or x.numel() == 0:
            raise StoreError(
                f"Activations have shape {tuple(x.shape)}; give a non-empty [N, d] or [images, tokens, d]."
            )
        if not torch.isfinite(x).all():
            raise StoreError("The activations hold NaN or infinite values; check the model or drop those rows.")
        self.x = x.detach().flatten(0, -2).float().cpu()
        self.d = x.shape[-1]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def fingerprint(self) -> str:
        """What a training run must find again to be continued."""
        return hashlib.blake2b(self.x.contiguous().numpy().tobytes(), digest_size=8).hexdigest()

    def mean(self) -> Tensor:
        return self.x.mean(0)

    def shuffled(self, batch_size: int, state: ReaderState | None = None) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass in random order from a state on, each row once; see `ActivationStore.shuffled`."""
        state = state or ReaderState()
        order = torch.from_numpy(np.random.default_rng((state.seed, 0)).permutation(len(self.x)))
        for start in range(state.position, len(order), batch_size):
            batch = self.x[order[start : start + batch_size]]
            yield batch, ReaderState(state.seed, state.rank, start + len(batch))
