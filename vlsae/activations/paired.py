"""Two sets of activations of the same tokens: what goes into a part of a model, and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from vlsae.activations.format import StoreError
from vlsae.activations.memory import TensorActivations
from vlsae.activations.reader import ActivationStore, ReaderState


class PairedActivations:
    """Inputs and, token by token, the targets that a transcoder makes of them; data for `vlsae.train`.

    A dictionary trained on a pair reads `inputs` and is scored against `targets`: with the input and the output of
    an MLP, its latents stand in for the MLP's neurons (arXiv 2510.22332, section 3).

    Args:
        inputs, targets: stores (or their folders) of the same images and tokens, or tensors `[N, d]`; of one width.

    Attributes:
        target: `[N, d]`, the targets of the batch that `shuffled` gave last.

    Raises:
        StoreError: for other widths, or sets that do not hold the same tokens.

    Example:
        >>> import torch
        >>> x = torch.randn(6, 4)
        >>> pair = PairedActivations(x, 2 * x)
        >>> batch, _ = next(pair.shuffled(3))
        >>> bool((pair.target == 2 * batch).all())
        True
    """

    def __init__(self, inputs: ActivationStore | Tensor | str | Path, targets: ActivationStore | Tensor | str | Path):
        self.inputs, self.targets = _open(inputs), _open(targets)
        self.d = self.inputs.d
        if (len(self.inputs), self.d) != (len(self.targets), self.targets.d):
            raise StoreError(
                f"Inputs are {len(self.inputs)} of width {self.d}, targets {len(self.targets)} of width "
                f"{self.targets.d}; give the same tokens at two sites of one width, such as mlp_in and mlp_out."
            )
        if isinstance(self.inputs, ActivationStore) != isinstance(self.targets, ActivationStore):
            raise StoreError("Inputs and targets must both be stores or both be tensors, to be read in one order.")
        if isinstance(self.inputs, ActivationStore):
            same_images(self.inputs, self.targets)

    @property
    def fingerprint(self) -> str:
        """What a training run must find again to be continued."""
        return f"{self.inputs.fingerprint}>{self.targets.fingerprint}"

    def shuffled(
        self, batch_size: int, state: ReaderState | None = None, **select
    ) -> Iterator[tuple[Tensor, ReaderState]]:
        """One pass over the inputs in random order from a state on, with `target` following; see the store's."""
        both = (data.shuffled(batch_size, state, **select) for data in (self.inputs, self.targets))
        for (x, reached), (self.target, _) in zip(*both, strict=True):
            yield x, reached


def _open(data) -> ActivationStore | TensorActivations:
    if isinstance(data, (str, Path)):
        return ActivationStore(data)
    return TensorActivations(data) if isinstance(data, Tensor) else data


def same_images(inputs: ActivationStore, targets: ActivationStore) -> None:
    """Raises StoreError unless images, tokens and shards are the same, so that both are read in one order."""
    for name in ("source", "tokens", "random_k", "seed", "shard_images"):
        one, other = getattr(inputs.config, name), getattr(targets.config, name)
        if one != other:
            raise StoreError(f"{name} is {one!r} of one store and {other!r} of the other; extract both alike.")
