"""Whether atoms found together with other models are those that a model's own dictionary finds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlsae.metrics.matching import stability
from vlsae.metrics.result import Metric


def concept_consistency(atoms: Tensor, independent: Tensor, threshold: float = 0.5, seed: int = 0) -> Metric:
    """Share of atoms with a partner in an independently trained dictionary, `|{k: cos(D_k, V_pi(k)) > threshold}| / n`.

    `pi` is the one-to-one matching of the largest mean cosine (arXiv 2502.03714). Atoms that all point one way would match
    anything that does, so the baseline matches with atoms drawn from a Gaussian of the mean and the covariance of
    `independent`.

    Args:
        atoms: `[n, d]`, of a model's part of a universal dictionary; only those of living latents, to say something.
        independent: `[m, d]`, of a dictionary of the same site trained alone; m at least n, or not all can have partners.
        threshold: .5 as published.
        seed: of the baseline's atoms.

    Returns:
        A `Metric`; its baselines are "gaussian", the same share there, and "mean_cosine", of the matched pairs.

    Raises:
        ValueError: for unequal widths.

    Example:
        >>> found = concept_consistency(torch.eye(4), torch.eye(4).flip(0))
        >>> found.value, found.baselines["mean_cosine"]
        (1.0, 1.0)
    """
    matched = stability(atoms, independent)
    generator = torch.Generator().manual_seed(seed)
    values = independent.detach().float().cpu()
    m, centred = len(values), values - values.mean(0)
    drawn = values.mean(0) + torch.randn(m, m, generator=generator) @ centred / math.sqrt(m)  # covariance C^T C / m
    random = stability(atoms.cpu(), drawn)
    return Metric(
        "concept_consistency",
        float((matched.scores > threshold).sum() / len(atoms)),
        len(atoms),
        f"share of atoms whose one-to-one partner in an independent dictionary has a cosine above {threshold}",
        "arXiv 2502.03714",
        baselines={
            "gaussian": float((random.scores > threshold).sum() / len(atoms)),
            "mean_cosine": matched.mean,
        },
    )
