"""Which latents to keep or remove first: by class, by data set, at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlsae.adaptation.comparison.aggregation import Aggregates
from vlsae.adaptation.comparison.ranking import order_latents


@dataclass(frozen=True)
class LatentRanking:
    """All latents in the order in which a mask takes them.

    Attributes:
        name: "class 3", "dataset" or "random 0".
        order: `[n]`, every latent once; silent ones come last, so that the top n is the whole dictionary.
        n_active: how many of them are active.
    """

    name: str
    order: np.ndarray
    n_active: int

    def top(self, k: int) -> np.ndarray:
        """The first `k` latents, `0 <= k <= n`.

        Raises:
            ValueError: for another k.
        """
        if not 0 <= k <= len(self.order):
            raise ValueError(f"k={k} was given for a ranking of {len(self.order)} latents.")
        return self.order[:k]


def class_ranking(aggregates: Aggregates, class_id: int) -> LatentRanking:
    """Latents by their activation on the images of one class, `a_c`; tied ones by number.

    Raises:
        ValueError: for a class without images.
    """
    values = aggregates.by_class[aggregates.row(class_id)].toarray()[0]
    return LatentRanking(f"class {class_id}", order_latents(values), int((values > 0).sum()))


def dataset_ranking(aggregates: Aggregates) -> LatentRanking:
    """Latents by their activation on all images, `a_D`: what a class ranking has to beat."""
    return LatentRanking("dataset", order_latents(aggregates.dataset), int((aggregates.dataset > 0).sum()))


def random_ranking(aggregates: Aggregates, seed: int = 0) -> LatentRanking:
    """Latents in a random order, those that are active on the data set first: silent ones would make it too easy to beat.

    Example:
        >>> from scipy import sparse
        >>> a = Aggregates(sparse.csr_matrix([[0, 2, 1, 0]]), np.array([0]), 4, "count", 0.2)
        >>> sorted(random_ranking(a).top(2).tolist()), class_ranking(a, 0).top(2).tolist()
        ([1, 2], [1, 2])
    """
    rng, active = np.random.default_rng(seed), aggregates.dataset > 0
    order = np.concatenate([rng.permutation(np.flatnonzero(part)) for part in (active, ~active)])
    return LatentRanking(f"random {seed}", order, int(active.sum()))
