"""Embeddings of images and of the texts that belong to them, as data of one dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vlsae.activations.paired import PairedActivations
from vlsae.activations.reader import ActivationStore, ReaderState


class TwoModalities:
    """Pairs of an image's and a text's vector; every batch holds images in its first half, their texts in the second.

    A family with a decoder for each modality (`vl_sae`) learns which row is which; any other family trained on it is the
    baseline of one dictionary for both. `batch_size` counts pairs.

    Args:
        images, texts: stores (or their folders) that hold the same rows, or tensors `[N, d]`; row `i` belongs to row `i`.

    Attributes:
        d: width of both.
        modality: `[2B]`, 0 for images and 1 for texts, of the batch that `shuffled` gave last.

    Raises:
        StoreError: for other widths, or sets that do not hold the same rows.

    Example:
        >>> data = TwoModalities(torch.zeros(6, 4), torch.ones(6, 4))
        >>> batch, _ = next(data.shuffled(2))
        >>> batch[:, 0].tolist(), data.modality.tolist()
        ([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    """

    def __init__(self, images: ActivationStore | Tensor | str | Path, texts: ActivationStore | Tensor | str | Path):
        self.pairs = PairedActivations(images, texts)
        self.d = self.pairs.d
        self.modality = torch.zeros(0, dtype=torch.long)

    @property
    def fingerprint(self) -> str:
        """What a training run must find again to be continued."""
        return f"{self.pairs.inputs.fingerprint}+{self.pairs.targets.fingerprint}"

    def shuffled(
        self, batch_size: int, state: ReaderState | None = None, **select
    ) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass over the pairs in random order from a state on, `[2 batch_size, d]` at a time; see the store's."""
        for images, reached in self.pairs.shuffled(batch_size, state, **select):
            self.modality = torch.arange(2).repeat_interleave(len(images))
            yield torch.cat([images, self.pairs.target]), reached
