"""Centroids of activations, by mini-batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def kmeans(batches: Iterable[Tensor], n: int, seed: int) -> Tensor:
    """`n` centroids of a stream of vectors, by mini-batch k-means (Sculley 2010; scikit-learn).

    Args:
        batches: tensors `[N, d]`; only what a batch needs is held, and the first ones until they are `n` vectors.
        n: centroids.
        seed: of start and updates.

    Returns:
        `[n, d]`, on the processor; where the stream has no more than `n` vectors, those, repeated.

    Raises:
        ValueError: for an empty stream.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        >>> sorted(round(c, 1) for c in kmeans([x], 2, seed=0)[:, 0].tolist())
        [0.1, 9.1]
    """
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(n, random_state=seed, n_init=3, init="k-means++", reassignment_ratio=0.01)
    held: list[Tensor] = []
    for x in batches:
        held.append(x.detach().float().cpu())
        if sum(map(len, held)) > n:
            model.partial_fit(torch.cat(held).numpy())
            held = []
    if hasattr(model, "cluster_centers_"):
        return torch.from_numpy(model.cluster_centers_).float()
    few = torch.cat(held) if held else torch.zeros(0)
    if len(few) == 0:
        raise ValueError("There are no vectors to cluster; check the selection of the data.")
    return few.repeat(-(-n // len(few)), 1)[:n]
