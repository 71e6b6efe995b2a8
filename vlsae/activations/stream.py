"""Activations that come as batches, from a loader, a list, or a generator, read like a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vlsae.activations.format import StoreError
from vlsae.activations.reader import ReaderState


class StreamActivations:
    """Batches `[n, d]` (or `[images, tokens, d]`, flattened) in the order they come, cut to the size that is asked for.

    What can be iterated again (a list, a DataLoader) is read pass after pass and a run on it can be resumed; a
    generator or another iterator is read once.

    Args:
        batches: of one width, finite.

    Raises:
        StoreError: for no batches, another shape, or values that are not finite.

    Example:
        >>> stream = StreamActivations([torch.ones(3, 2), torch.ones(4, 2)])
        >>> [len(x) for x, _ in stream.shuffled(5)]
        [5, 2]
    """

    fingerprint = "stream"

    def __init__(self, batches: Iterable[Tensor]):
        self._source = batches
        self.once = iter(batches) is batches
        self._rest = self._checked(iter(batches))
        self._held: list[Tensor] = []
        first = next(self._rest, None)
        if first is None:
            raise StoreError("The stream holds no batch; give an iterable of [n, d] tensors.")
        self.d = first.shape[1]
        self._held.append(first)

    def _checked(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for number, x in enumerate(batches):
            if not isinstance(x, Tensor) or x.ndim not in (2, 3):
                given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise StoreError(
                    f"Batch {number} of the stream is {given}; give [n, d] or [images, tokens, d] tensors."
                )
            if x.shape[-1] != getattr(self, "d", x.shape[-1]):
                raise StoreError(f"Batch {number} of the stream has width {x.shape[-1]}, the first had {self.d}.")
            if not torch.isfinite(x).all():
                raise StoreError(f"Batch {number} of the stream holds NaN or infinite values; check the model.")
            yield x.detach().flatten(0, -2).float()

    def sample(self, n: int) -> Tensor:
        """The first `n` vectors (fewer where the stream is shorter); they are given again by `shuffled`."""
        while sum(len(x) for x in self._held) < n and (x := next(self._rest, None)) is not None:
            self._held.append(x)
        return torch.cat(self._held)[:n]

    def shuffled(self, batch_size: int, state: ReaderState | None = None) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass from a state on, in the order of the stream: a stream is as shuffled as its owner made it."""
        state = state or ReaderState()
        if self.once and self._rest is None:
            raise StoreError(
                "The stream has ended; give a longer one, or fewer steps, or batches that can be read again."
            )
        buffer, passed = torch.empty(0, self.d), 0
        for x in self._read():
            buffer = torch.cat([buffer, x.cpu()])
            while len(buffer) >= batch_size:
                passed += batch_size
                if passed > state.position:
                    yield buffer[:batch_size], ReaderState(state.seed, state.rank, passed)
                buffer = buffer[batch_size:]
        if len(buffer) and passed + len(buffer) > state.position:
            yield buffer, ReaderState(state.seed, state.rank, passed + len(buffer))

    def _read(self) -> Iterator[Tensor]:
        if not self.once:
            yield from self._checked(iter(self._source))
            return
        while self._held:
            yield self._held.pop(0)
        rest, self._rest = self._rest, None
        yield from rest or ()
