"""How reconstruction improves from level to level of a nested dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlsae.activations.reader import ActivationStore
from vlsae.dictionaries.nested_dictionary import NestedDictionaryMatryoshka
from vlsae.dictionaries.nested_sparsity import NestedSparsityMatryoshka
from vlsae.metrics.reconstruction import reconstruction
from vlsae.metrics.result import Metric


@dataclass(frozen=True)
class Level:
    """One level of a nested dictionary on some data.

    Attributes:
        size: number of latents of a prefix ("nested_dictionary"), or of active latents a token ("nested_sparsity").
        metrics: what `reconstruction` gives for the level alone.
    """

    size: int
    metrics: dict[str, Metric]


def progressive_reconstruction(
    dictionary: NestedDictionaryMatryoshka | NestedSparsityMatryoshka,
    data: ActivationStore | Tensor,
    *,
    sizes: Sequence[int] = (),
    batch: int = 4096,
) -> list[Level]:
    """Reconstruction by every level of a Matryoshka dictionary, coarsest first: the curve of progressive recovery.

    `xhat_i = z_i W_dec + b_dec`, where `z_i` has the first `m_i` latents (arXiv 2503.17547) or the `k_i` largest
    codes (MSAE, arXiv 2502.20578).

    Args:
        dictionary: a "nested_dictionary" or "nested_sparsity".
        data: a store, or `[N, d]`.
        sizes: numbers of active latents, other than those trained with; for "nested_sparsity" alone.
        batch: tokens at a time.

    Returns:
        One `Level` a level, or a size.

    Raises:
        ValueError: for a family without levels, or sizes it cannot have.

    Example:
        >>> sae = NestedSparsityMatryoshka(d=4, n_latents=8, ks=[2, 8])
        >>> import torch
        >>> [level.size for level in progressive_reconstruction(sae, torch.randn(20, 4))]
        [2, 8]
    """
    if isinstance(dictionary, NestedSparsityMatryoshka):
        sizes = list(sizes) or dictionary.ks
        parts = [dictionary.cut_to(k) for k in sizes]
    elif isinstance(dictionary, NestedDictionaryMatryoshka) and not sizes:
        sizes = dictionary.prefixes
        parts = [dictionary.sub_dictionary(level) for level in range(len(sizes))]
    else:
        raise ValueError(
            f"{dictionary.family!r} with sizes={list(sizes)} has no levels to compare; give a 'nested_dictionary' without "
            "sizes, or a 'nested_sparsity'."
        )
    return [Level(size, reconstruction(part, data, batch)) for size, part in zip(sizes, parts, strict=True)]
