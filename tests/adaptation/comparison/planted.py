"""Sparse planted counts of images of several classes."""

import numpy as np
from scipy import sparse

from vlsae.adaptation.comparison.aggregation import Aggregates

N_TOKENS = 65


def counts(rng, n_images: int, n_latents: int, rate: float = 0.2) -> np.ndarray:
    """Heavy-tailed and sparse: most latents are silent on most images, some fire on many tokens."""
    size = rng.geometric(0.25, (n_images, n_latents)) * (1 + 8 * (rng.random((n_images, n_latents)) < 0.05))
    return np.where(rng.random((n_images, n_latents)) < rate, np.minimum(size, N_TOKENS), 0)


def exchangeable(rng, n_images: int, n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that see the same images: a common part, and noise that could as well be the other's."""
    common = counts(rng, n_images, n_latents)
    noisy = [np.where(rng.random(common.shape) < 0.3, counts(rng, n_images, n_latents, 0.5), common) for _ in range(2)]
    return noisy[0], noisy[1]


def aggregates(table, labels) -> Aggregates:
    return Aggregates(sparse.csr_matrix(table), np.asarray(labels), N_TOKENS, "count", 0.2)
