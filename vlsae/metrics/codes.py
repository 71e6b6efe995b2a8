"""How a codebook is used, and what its codes stand for."""

from __future__ import annotations

import torch
from torch import Tensor


def usage(z: Tensor) -> Tensor:
    """Share of all chosen codes that each code has, `[n]`, for codes `[N, n]`."""
    counts = (z != 0).double().flatten(0, -2).sum(0)
    return counts / counts.sum().clamp_min(1.0)


def perplexity(z: Tensor) -> float:
    """`exp(entropy of usage)`: as many codes as if all in use were used alike.

    Example:
        >>> round(perplexity(torch.eye(4)), 6)
        4.0
    """
    return float(torch.exp(torch.special.entr(usage(z)).sum()))


def code_precision(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Precision `P(concept | code active)` and recall `P(code active | concept)`, `[n, n_concepts]` each.

    Args:
        z: codes `[N, n]`; labels: bool `[N, n_concepts]`.

    Returns:
        NaN where a code is never active, or a concept never there.
    """
    fires, truth = (z != 0).double(), labels.double()
    hits = fires.T @ truth
    return hits / fires.sum(0)[:, None], hits / truth.sum(0)
