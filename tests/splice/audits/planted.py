"""Weights whose truth is known: presence by coin, size uniform."""

import numpy as np
from scipy import sparse

LOW, HIGH = 0.05, 0.35  # weights where present, mean .2


def coins(rng, n, prevalence) -> sparse.csr_matrix:
    """`n` images; concept j is present with probability `prevalence[j]`, or `prevalence[i, j]` in image i."""
    prevalence = np.asarray(prevalence, dtype=float)
    present = rng.random((n, prevalence.shape[-1])) < prevalence
    return sparse.csr_matrix(present * rng.uniform(LOW, HIGH, present.shape))


def names(k: int) -> list[str]:
    return [f"concept {i}" for i in range(k)]
