"""The same tokens at several layers, every layer's vector an example of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlsae.activations.format import StoreError
from vlsae.activations.memory import TensorActivations
from vlsae.activations.paired import same_images
from vlsae.activations.reader import ActivationStore, ReaderState


class LayerActivations:
    """Activations of L layers as one set, `x_{l,t}` an example for every layer l and token t (arXiv 2409.04185).

    A dictionary trained on it is a multi-layer SAE. A batch holds tokens with all their layers, one after the other, so
    that `codes.unflatten(0, (-1, L))` is `[tokens, L, n_latents]` again.

    Args:
        layers: stores (or their folders) of the same images and tokens, one a layer; or one tensor `[N, L, d]`.

    Raises:
        StoreError: for no layers, other widths, or stores that do not hold the same tokens.

    Example:
        >>> batch, _ = next(LayerActivations(torch.randn(6, 3, 4)).shuffled(6))
        >>> batch.unflatten(0, (-1, 3)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, layers: Sequence[ActivationStore | str | Path] | Tensor):
        if isinstance(layers, Tensor):
            if layers.ndim != 3:
                raise StoreError(f"Activations have shape {tuple(layers.shape)}; give [N, L, d], a vector a layer.")
            self.layers = [TensorActivations(x) for x in layers.unbind(1)]
        else:
            self.layers = [ActivationStore(x) if isinstance(x, (str, Path)) else x for x in layers]
        if not self.layers:
            raise StoreError("There are no layers; give one store or more.")
        shapes = [(len(layer), layer.d) for layer in self.layers]
        if len(set(shapes)) > 1:
            raise StoreError(f"Layers hold (tokens, width) {shapes}; give the same tokens at layers of one width.")
        for layer in self.layers[1:]:
            if isinstance(layer, ActivationStore):
                same_images(self.layers[0], layer)
        self.d = self.layers[0].d

    def __len__(self) -> int:
        return len(self.layers) * len(self.layers[0])

    @property
    def fingerprint(self) -> str:
        """What a training run must find again to be continued."""
        return "+".join(layer.fingerprint for layer in self.layers)

    def mean(self) -> Tensor:
        """The mean over layers and tokens, `[d]`."""
        return torch.stack([layer.mean() for layer in self.layers]).mean(0)

    def shuffled(
        self, batch_size: int, state: ReaderState | None = None, **select
    ) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass in random order from a state on, `batch_size // L` tokens (at least one) at a time; see the store's."""
        tokens = max(1, batch_size // len(self.layers))
        for parts in zip(*(layer.shuffled(tokens, state, **select) for layer in self.layers), strict=True):
            yield torch.stack([x for x, _ in parts], 1).flatten(0, 1), parts[0][1]
